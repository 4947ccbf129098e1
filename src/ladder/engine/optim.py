"""The optimiser: AdamW, or Muon for the hidden matrices with AdamW for the rest, under the usual schedules.

AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101. Muon: Jordan et al. 2024; torch's implementation. The whole
gradient is clipped to one norm before the step. Weight decay leaves out vectors (norms, biases) and embeddings.

Weights in halves are trained as mixed precision has it (Micikevicius et al. 2018, arXiv:1710.03740): the optimiser
steps float32 weights of its own, gradients of micro-batches are summed in float32, and the model's weights are those
rounded. A step of 1e-5 on a weight of 8 bits would change nothing. Left out: scaling the loss, without which float16
loses most of a gradient that is divided by thousands of tokens, so float16 is not trained at all.
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

Kind = Literal["adamw", "muon"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
MASTER = "master"
"""What a float32 weight is called in a checkpoint, beside the moments."""


class NotFinite(FloatingPointError):
    """A loss or a gradient is NaN or infinite; no weight was changed."""


@dataclass(frozen=True, slots=True)
class Optim:
    """lr: of AdamW at the top of its schedule. muon_lr: of the hidden matrices with kind "muon".

    warmup: share of the steps over which lr rises linearly. schedule: then constant, linear or cosine down to
    `final` times lr, or "wsd": constant, then so linear over the last `decay` share of the steps. clip: largest
    gradient norm (0: none). Raises UserError for values that cannot be meant.
    """

    lr: float = 1e-5
    kind: Kind = "adamw"
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
        for name, known in (("kind", get_args(Kind)), ("schedule", get_args(Schedule))):
            ok = getattr(self, name) in known
            self._require(ok, name, f"there is no {getattr(self, name)!r}", f"one of {', '.join(known)}")
        for name in ("lr", "muon_lr", "eps"):
            self._require(0 < getattr(self, name) < math.inf, name, "must be positive")
        for name in ("warmup", "final", "decay"):
            self._require(0 <= getattr(self, name) <= 1, name, "is a share between 0 and 1")
        for name in ("weight_decay", "clip"):
            self._require(0 <= getattr(self, name) < math.inf, name, "must not be negative")
        ok = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        self._require(ok, "betas", "are two numbers in [0, 1)")

    def _require(self, ok: bool, name: str, message: str, hint: str | None = None) -> None:
        if not ok:
            text = message if hint else f"{message}, got {getattr(self, name)}"
            raise UserError(text, field=f"optim.{name}", hint=hint)

    def factor(self, step: int, total: int) -> float:
        """What lr is multiplied with at `step` (from 0) of `total`."""
        if total <= 0 and (self.warmup or self.schedule != "constant"):
            name = "schedule" if self.schedule != "constant" else "warmup"
            raise UserError(f"{getattr(self, name)!r} needs the number of steps", field=f"optim.{name}")
        rising = self.warmup * total
        if step < rising:
            return (step + 1) / (rising + 1)
        if self.schedule == "constant":
            return 1.0
        x = min(1.0, (step - rising) / max(1.0, total - rising))
        if self.schedule == "wsd":
            shape = min(1.0, max(0.0, total - step) / max(1.0, self.decay * total))
        elif self.schedule == "linear":
            shape = 1 - x
        else:
            shape = 0.5 * (1 + math.cos(math.pi * x))
        return self.final + (1 - self.final) * shape


class Optimizer:
    """Steps named parameters; its state goes to and comes from safetensors and JSON, bit for bit.

    masters: the float32 weights of those in halves. stepped: what the optimiser changes, a master or the parameter."""

    def __init__(self, params: dict[str, nn.Parameter], optim: Optim, total: int) -> None:
        optim.factor(0, total)  # an unusable schedule is an error before the first step, not after the first batch
        self.params, self.optim, self.total = params, optim, total
        self.step_count = 0
        self.last_lr = 0.0
        if any(p.dtype == torch.float16 for p in params.values()):
            raise UserError("float16 is too narrow to train in", field="model.dtype", hint="use bfloat16")
        self.masters = {n: p.detach().float() for n, p in params.items() if p.dtype == torch.bfloat16}
        self.stepped: dict[str, Tensor] = params | self.masters
        matrices = {n: p for n, p in self.stepped.items() if p.ndim == 2 and not _is_table(n)}
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
            for p in (p for g in groups for p in g["params"]):  # now: later they would lie between gradients that go
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                adamw.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.parts.append((adamw, optim.lr))

    def zero_grad(self) -> None:
        for p in (*self.params.values(), *self.masters.values()):
            p.grad = None

    def gather(self) -> None:
        """Moves the halves' gradients to their masters; for after each backward pass."""
        for name, master in self.masters.items():
            param = self.params[name]
            if param.grad is not None:
                master.grad = param.grad.float() if master.grad is None else master.grad.add_(param.grad)
                param.grad = None

    def step(self) -> float:
        """Clips, steps, clears the gradients; returns the norm before clipping.

        Raises NotFinite on a gradient that is not finite: no weight was changed.
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
        self._round()
        self.last_lr = self.optim.lr * factor
        self.step_count += 1
        self.zero_grad()
        return norm

    def _round(self) -> None:
        """The model's halves, from the masters."""
        if self.masters:
            halves: list[Tensor] = [self.params[name] for name in self.masters]
            with torch.no_grad():
                torch._foreach_copy_(halves, list(self.masters.values()))  # pyright: ignore[reportPrivateImportUsage]

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
        """Raises UserError when the checkpoint is of other parameters."""
        saved = json.loads((directory / "optim.json").read_text())
        if saved["kind"] != self.optim.kind:
            raise UserError(f"this checkpoint was trained with {saved['kind']}, not {self.optim.kind}", file=directory)
        trained = load_file(directory / "trained.safetensors")
        if trained.keys() != self.params.keys():
            odd = sorted(trained.keys() ^ self.params.keys())[:3]
            raise UserError(f"this checkpoint is of another model: {odd} stand on one side only", file=directory)
        for name, p in self.params.items():
            if trained[name].shape != p.shape:
                shapes = f"{tuple(trained[name].shape)}, not {tuple(p.shape)}"
                raise UserError(f"this checkpoint is of another model: {name} is {shapes}", file=directory)
        states: dict[str, dict[str, Tensor]] = {}
        for full, value in load_file(directory / "optim.safetensors").items():
            name, key = full.rsplit("//", 1)
            states.setdefault(name, {})[key] = value
        self._load_masters(states, directory)
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(trained[name])
        for part, _ in self.parts:
            own = {p for group in part.param_groups for p in group["params"]}
            for name, p in self.stepped.items():
                if p in own and name in states:
                    part.state[p] = {k: v.to(p.device) for k, v in states[name].items()}
        self.step_count, self.last_lr = saved["step"], saved["last_lr"]

    def _load_masters(self, states: dict[str, dict[str, Tensor]], directory: Path) -> None:
        """Takes them out of the states."""
        found = {name: state.pop(MASTER) for name, state in states.items() if MASTER in state}
        if found.keys() != self.masters.keys():
            odd = min(found.keys() ^ self.masters.keys())
            raise UserError(
                f"this checkpoint is of weights of another type: {odd}",
                file=directory,
                field="model.dtype",
                hint="go on with the type that it was trained in",
            )
        for name, master in self.masters.items():
            master.copy_(found[name])


def _is_table(name: str) -> bool:
    """Embeddings and output heads: looked up by row, so neither decayed nor orthogonalised."""
    return any(part in name for part in ("embed", "lm_head", "wte", "wpe"))
