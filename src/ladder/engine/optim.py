"""The optimiser: AdamW, or Muon for the hidden matrices and AdamW for the rest, with the usual learning-rate schedules.

AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101. Muon: Jordan et al. 2024; torch's implementation. The gradient of all
parameters is clipped to one global norm before the step. Weight decay applies neither to vectors (norms, biases) nor to
embeddings.

bfloat16 weights are trained in mixed precision (Micikevicius et al. 2018, arXiv:1710.03740): the optimiser steps
float32 master weights, gradients of micro-batches are summed in float32, and the model's weights are the rounded
masters. Without masters, a step of 1e-5 would be lost, since a bfloat16 weight has 8 bits of precision. Left out: loss
scaling, without which float16 loses most of a gradient that is divided by thousands of tokens; training in float16 is
therefore an error.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ladder.base.errors import UserError

OptimizerKind = Literal["adamw", "muon"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
MASTER = "master"
"""The name of a master weight in a checkpoint, where it is stored with the moments."""


class NotFinite(FloatingPointError):
    """A loss or gradient is NaN or infinite; no weight was changed."""


@dataclass(frozen=True, slots=True)
class Optim:
    """The optimiser's configuration.

    lr: AdamW's peak learning rate. muon_lr: that of the hidden matrices with kind "muon". warmup: fraction of the steps
    over which the learning rate rises linearly. schedule: after warmup, "constant", or "linear" or "cosine" decay to
    `final` times the peak, or "wsd" (warmup-stable-decay): constant, then linear decay over the last fraction `decay`
    of the steps. clip: largest gradient norm (0: no clipping). Raises UserError for values out of range.
    """

    lr: float = 1e-5
    kind: OptimizerKind = "adamw"
    muon_lr: float = 2e-2
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: float = 0.0
    schedule: Schedule = "constant"
    final: float = 0.0
    decay: float = 0.2
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name, options in (("kind", get_args(OptimizerKind)), ("schedule", get_args(Schedule))):
            ok = getattr(self, name) in options
            self._require(ok, name, f"there is no {name} {getattr(self, name)!r}", f"use one of {', '.join(options)}")
        for name in ("lr", "muon_lr", "eps"):
            self._require(0 < getattr(self, name) < math.inf, name, "must be positive")
        for name in ("warmup", "final", "decay"):
            self._require(0 <= getattr(self, name) <= 1, name, "must be between 0 and 1")
        for name in ("weight_decay", "clip"):
            self._require(0 <= getattr(self, name) < math.inf, name, "must not be negative")
        ok = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        self._require(ok, "betas", "must be two numbers in [0, 1)")

    def _require(self, ok: bool, name: str, message: str, hint: str | None = None) -> None:
        if not ok:
            text = message if hint else f"{message}, got {getattr(self, name)}"
            raise UserError(text, field=f"optim.{name}", hint=hint)

    def factor(self, step: int, total: int) -> float:
        """The factor on the peak learning rate at `step` (from 0) of `total`."""
        if total <= 0 and (self.warmup or self.schedule != "constant"):
            name = "schedule" if self.schedule != "constant" else "warmup"
            raise UserError(f"{getattr(self, name)!r} needs the number of steps", field=f"optim.{name}")
        warmup_steps = self.warmup * total
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        x = min(1.0, (step - warmup_steps) / max(1.0, total - warmup_steps))
        if self.schedule == "wsd":
            shape = min(1.0, max(0.0, total - step) / max(1.0, self.decay * total))
        elif self.schedule == "linear":
            shape = 1 - x
        else:
            shape = 0.5 * (1 + math.cos(math.pi * x))
        return self.final + (1 - self.final) * shape


class Optimizer:
    """Steps named parameters. Its state is saved to and loaded from safetensors and JSON, bit for bit.

    masters: float32 master weights of the bfloat16 parameters, by name. stepped: the tensors that the optimiser steps,
    by name: the master weight where there is one, else the parameter.
    """

    def __init__(self, params: dict[str, nn.Parameter], optim: Optim, total: int) -> None:
        """total: optimiser steps of the schedule. Raises UserError for float16 and for a schedule without steps."""
        optim.factor(0, total)  # an invalid schedule is an error here, not after the first batch
        self.params, self.optim, self.total = params, optim, total
        self.step_count = 0
        self.last_lr = 0.0
        if any(p.dtype == torch.float16 for p in params.values()):
            raise UserError(
                "the exponent range of float16 is too narrow for training", field="model.dtype", hint="use bfloat16"
            )
        self.masters = {n: p.detach().float() for n, p in params.items() if p.dtype == torch.bfloat16}
        self.stepped: dict[str, Tensor] = params | self.masters
        matrices = {n: p for n, p in self.stepped.items() if p.ndim == 2 and not _is_embedding(n)}
        others = {n: p for n, p in self.stepped.items() if n not in matrices}
        self.parts: list[tuple[torch.optim.Optimizer, float]] = []
        if optim.kind == "muon" and matrices:
            muon = torch.optim.Muon(
                list(matrices.values()), lr=optim.muon_lr, weight_decay=optim.weight_decay, momentum=0.95
            )
            self.parts.append((muon, optim.muon_lr))
            matrices = {}
        groups = [
            {"params": list(matrices.values()), "weight_decay": optim.weight_decay},
            {"params": list(others.values()), "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        if groups:
            adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
            # allocated now: allocated at the first step, the moments would lie between gradients that are freed
            for p in (p for g in groups for p in g["params"]):
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                adamw.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.parts.append((adamw, optim.lr))

    def zero_grad(self) -> None:
        for p in (*self.params.values(), *self.masters.values()):
            p.grad = None

    def gather(self) -> None:
        """Adds the gradients of the bfloat16 parameters to their masters'. Call it after each backward pass."""
        for name, master in self.masters.items():
            param = self.params[name]
            if param.grad is not None:
                master.grad = param.grad.float() if master.grad is None else master.grad.add_(param.grad)
                param.grad = None

    def step(self) -> float:
        """Clips the gradients, steps, clears the gradients; returns the gradient norm before clipping.

        Raises NotFinite when the norm is not finite; then no weight was changed.
        """
        self.gather()
        grads = [p.grad for p in self.stepped.values() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(grads))
        if not math.isfinite(norm):
            self.zero_grad()
            raise NotFinite(f"the gradient norm is {norm} at optimiser step {self.step_count}")
        if self.optim.clip and norm > self.optim.clip:
            torch._foreach_mul_(grads, self.optim.clip / norm)  # pyright: ignore[reportPrivateImportUsage]
        factor = self.optim.factor(self.step_count, self.total)
        for part, lr in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * factor
            part.step()
        self._round_masters()
        self.last_lr = self.optim.lr * factor
        self.step_count += 1
        self.zero_grad()
        return norm

    def _round_masters(self) -> None:
        """Writes the rounded master weights to the model's bfloat16 parameters."""
        if self.masters:
            params: list[Tensor] = [self.params[name] for name in self.masters]
            with torch.no_grad():
                torch._foreach_copy_(params, list(self.masters.values()))  # pyright: ignore[reportPrivateImportUsage]

    # ------------------------------------------------------------ state

    def save(self, directory: Path) -> None:
        """Trained weights to trained.safetensors, moments and masters to optim.safetensors, the step count to
        optim.json."""
        tensors = {f"{name}//{MASTER}": master for name, master in self.masters.items()}
        for name, p in self.stepped.items():
            for part, _ in self.parts:
                for key, value in part.state.get(p, {}).items():
                    value = value if isinstance(value, Tensor) else torch.tensor(float(value))
                    tensors[f"{name}//{key}"] = value.detach().contiguous()
        save_file({n: p.detach().contiguous() for n, p in self.params.items()}, directory / "trained.safetensors")
        save_file(tensors, directory / "optim.safetensors")
        state = {"kind": self.optim.kind, "step": self.step_count, "last_lr": self.last_lr}
        (directory / "optim.json").write_text(json.dumps(state))

    def load(self, directory: Path) -> None:
        """The inverse of `save`. Raises UserError when the checkpoint is of another optimiser, model or dtype."""
        saved = json.loads((directory / "optim.json").read_text())
        if saved["kind"] != self.optim.kind:
            raise UserError(
                f"this checkpoint was trained with {saved['kind']}, not {self.optim.kind}",
                file=directory,
                field="optim.kind",
            )
        trained = load_file(directory / "trained.safetensors")
        if trained.keys() != self.params.keys():
            unmatched = sorted(trained.keys() ^ self.params.keys())[:3]
            raise UserError(
                f"this checkpoint is of another model: {unmatched} are in the checkpoint or in the model only",
                file=directory,
            )
        for name, p in self.params.items():
            if trained[name].shape != p.shape:
                shapes = f"{tuple(trained[name].shape)}, not {tuple(p.shape)}"
                raise UserError(f"this checkpoint is of another model: {name} has shape {shapes}", file=directory)
        states: dict[str, dict[str, Tensor]] = {}
        for full, value in load_file(directory / "optim.safetensors").items():
            name, key = full.rsplit("//", 1)
            states.setdefault(name, {})[key] = value
        self._load_masters(states, directory)
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(trained[name])
        for part, _ in self.parts:
            part_params = {p for group in part.param_groups for p in group["params"]}
            for name, p in self.stepped.items():
                if p in part_params and name in states:
                    part.state[p] = {k: v.to(p.device) for k, v in states[name].items()}
        self.step_count, self.last_lr = saved["step"], saved["last_lr"]

    def _load_masters(self, states: dict[str, dict[str, Tensor]], directory: Path) -> None:
        """Loads the master weights and removes them from the states. Raises UserError when the dtypes differ."""
        saved_masters = {name: state.pop(MASTER) for name, state in states.items() if MASTER in state}
        if saved_masters.keys() != self.masters.keys():
            unmatched = min(saved_masters.keys() ^ self.masters.keys())
            raise UserError(
                f"this checkpoint was trained in another dtype: {unmatched} has float32 master weights "
                f"{'in the checkpoint' if unmatched in saved_masters else 'in this run'} only",
                file=directory,
                field="model.dtype",
                hint="continue with the dtype that it was trained in",
            )
        for name, master in self.masters.items():
            master.copy_(saved_masters[name])


def _is_embedding(name: str) -> bool:
    """Whether a parameter is an embedding or output head: one row per token, so neither decayed nor orthogonalised."""
    return any(part in name for part in ("embed", "lm_head", "wte", "wpe"))
