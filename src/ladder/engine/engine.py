"""The engine trains a model from tokens, masks, columns and a loss. It does not know which technique they come from.

It has six operations: forward, update, weights, freeze, save, load. One optimiser step follows the gradient of

    (1 / count) * sum over units of loss(policy(tokens), columns)

with the count taken over the whole step before its first forward pass, so every split into micro-batches gives
the same gradient. A step whose loss or gradient is not finite changes no weight and stops the run.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ladder.attention.packed import PackedPlan
from ladder.base import rng
from ladder.contract.batch import Out
from ladder.contract.training import Loss, Pair, Unit
from ladder.engine.allocator import keep_pages
from ladder.engine.optim import NotFinite, Optim, Optimizer
from ladder.models import fused_llama
from ladder.models.head import ScalarHead, head_of
from ladder.models.logprobs import token_logps
from ladder.packing.pack import Packed, count, pack, prompt_length, sequences

__all__ = ["Engine", "NotFinite"]

PROCESSOR = 1280
"""Default token budget of a micro-batch on the CPU: matrix products are as fast as with more tokens, and a micro-batch
of a model of 135 million parameters needs 0.9 GB."""
ELSEWHERE = 8192
"""Default token budget on a GPU, whose matrix products need thousands of rows to be fast."""


class Engine:
    """A causal language model, or a model with a scalar head, either under training (with `optim`) or frozen (without).

    budget: most tokens of one micro-batch; it bounds memory and changes no gradient (None: PROCESSOR or ELSEWHERE).
    share_prefix: store prefixes that neighbouring sequences share once. temperature: the sampling temperature, at which
    log-probabilities are computed. checkpointing: recompute activations in backward. total_steps: optimiser steps of
    the learning-rate schedule. workers: threads that run micro-batches in parallel, each with its own copy of the
    gradients, summed in a fixed order; for models so small that one operator cannot use all cores. without: a context
    manager in which the model is the reference (with the adapter off), used by `forward(reference=True)`.
    Raises ValueError when `optim` is given and no parameter is trainable.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: Optim | None = None,
        *,
        budget: int | None = None,
        share_prefix: bool = True,
        temperature: float = 1.0,
        checkpointing: bool = False,
        total_steps: int = 0,
        workers: int = 1,
        without: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.model = model
        self.base: nn.Module = model.get_decoder()  # pyright: ignore[reportCallIssue]
        self.head = head_of(model)
        self.fused = None if checkpointing else fused_llama.of(self.base, self.head.weight)
        self.share_prefix = share_prefix
        self.temperature = temperature
        self.without = without
        self.workers = workers
        self.in_place = workers == 1  # several workers must not accumulate into the same `.grad`
        self.pool = ThreadPoolExecutor(workers) if workers > 1 else None
        if workers > 1:
            sys.setswitchinterval(1e-4)  # with the default of 5 ms, threads wait too long for the interpreter lock
        self.device = next(model.parameters()).device
        self.budget = budget or (PROCESSOR if self.device.type == "cpu" else ELSEWHERE)
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer: Optimizer | None = None
        model.train(optim is not None and checkpointing)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore[reportCallIssue]
        if optim is not None:
            if not self.trained:
                raise ValueError("the model has no trainable parameter")
            if self.device.type == "cpu":
                keep_pages()
            self.optimizer = Optimizer(self.trained, optim, total_steps)

    # ------------------------------------------------------------ forward

    def forward(
        self, units: Sequence[Unit], *, entropy: bool = False, reference: bool = False
    ) -> list[dict[str, Tensor]]:
        """Columns of every sequence in order, float32 [T] on the CPU, 0 where the mask is False: {"logps"}, with
        "entropy" if requested, or {"values"} of a scalar head.

        The entry of a token is computed from the hidden state at the position before it. reference: of the reference
        model instead of the policy. Raises ValueError for a reference without an adapter.
        """
        samples = list(sequences(units))
        columns: list[dict[str, Tensor]] = []
        if reference and self.without is None:
            raise ValueError("this engine has no adapter to switch off: use a frozen copy (freeze()) as the reference")
        with torch.no_grad(), self.without() if reference and self.without else nullcontext():
            for packed in pack(units, (), self.budget, self.share_prefix):
                packed = packed.to(self.device)
                out = self._out(packed, entropy)
                outputs_N = {"logps": out.logps} if out.values is None else {"values": out.values}
                outputs_N |= {} if out.entropy is None else {"entropy": out.entropy}
                by_sequence = {
                    name: x.float().cpu().split(packed.batch.lengths_S.tolist()) for name, x in outputs_N.items()
                }
                for i in range(packed.batch.n_seqs):
                    mask = samples[len(columns)].mask
                    columns.append(
                        {name: torch.zeros(len(mask)).masked_scatter_(mask, x[i]) for name, x in by_sequence.items()}
                    )
        return columns

    def _out(self, packed: Packed, entropy: bool) -> Out:
        """The model's output at the trained positions of a micro-batch."""
        hidden_ND = self._hidden(packed)
        if isinstance(self.head, ScalarHead):
            values = self.head.values(hidden_ND)
            return Out(values.new_full(values.shape, math.nan), None, values)  # NaN: no loss may read log-probabilities
        return Out(
            *token_logps(
                hidden_ND,
                self.head,
                packed.tgt_N,
                temperature=self.temperature,
                entropy=entropy,
                in_place=self.in_place,
            )
        )

    def _hidden(self, packed: Packed) -> Tensor:
        """The last hidden states at the positions that predict, [N, D]."""
        plan = PackedPlan.of(packed.segments, len(packed.tokens_T)).to(self.device)
        if self.fused is not None:
            return self.fused.hidden(packed.tokens_T, packed.positions_T, plan, packed.src_N, self.in_place)
        states = self.base(
            input_ids=packed.tokens_T[None],
            position_ids=packed.positions_T[None],
            use_cache=False,
            plan=plan,
        )[0][0]
        return states.index_select(0, packed.src_N)

    # ------------------------------------------------------------ update

    def update(
        self, units: Sequence[Unit], loss: Loss, *, epochs: int = 1, minibatches: int = 1, key: int = 0
    ) -> dict[str, float]:
        """Makes `epochs` passes over the units, each in `minibatches` optimiser steps; returns figures of all steps.

        Figures: "loss", "grad_norm", "lr", "tokens", "tokens_per_s" and the loss's own metrics, each averaged over the
        elements it is measured on; "first/..." are those of the first optimiser step, measured before any weight
        changed. Minibatches keep the answers to one prompt together, and are shuffled by `key` after the first epoch.
        Raises ValueError when there is nothing to train, NotFinite when a loss or gradient is not finite.
        """
        if self.optimizer is None:
            raise ValueError("a frozen engine cannot be trained: it has no optimiser")
        if not units:
            raise ValueError("nothing to train: the batch is empty")
        start, meter, first = time.perf_counter(), _Meter(), {}
        for epoch in range(epochs):
            for part in _minibatches(units, minibatches, shuffle=rng.key(key, epoch) if epoch else None):
                step_meter = _Meter()
                self._step(part, loss, step_meter)
                first = first or {f"first/{k}": v for k, v in step_meter.result().items() if k != "tokens"}
                meter.merge(step_meter)
        figures = meter.result() | first
        figures["lr"] = self.optimizer.last_lr
        figures["tokens_per_s"] = meter.total("tokens") / (time.perf_counter() - start)
        return figures

    def _step(self, units: Sequence[Unit], loss: Loss, meter: _Meter) -> None:
        """One optimiser step: the gradients of all micro-batches are summed, then the optimiser steps."""
        assert self.optimizer is not None
        total = count(units, loss)
        packs = pack(units, loss.needs, self.budget, self.share_prefix, self.workers)
        results = self.pool.map(lambda p: self._gradients(p, loss, total), packs) if self.pool else None
        if results is None:
            results = (self._accumulate(p, loss, total) for p in packs)
        # read after all micro-batches have been launched, so that the GPU is not synchronised in between
        figures: list[tuple[Tensor, dict[str, Tensor]]] = []
        try:
            for value, grads, metrics in results:
                for param, grad in zip(self.trained.values(), grads, strict=False):
                    if grad is not None:
                        param.grad = grad if param.grad is None else param.grad.add_(grad)
                self.optimizer.gather()
                figures.append((value, metrics))
            loss_sum = 0.0
            for value, metrics in figures:
                loss_sum += value.item()
                meter.add(metrics)
        except BaseException:  # the gradients of an incomplete step must not be added to the next step's
            self.optimizer.zero_grad()
            raise
        if not math.isfinite(loss_sum):
            self.optimizer.zero_grad()
            raise NotFinite(f"the loss is {loss_sum} at optimiser step {self.optimizer.step_count}")
        norm = self.optimizer.step()
        meter.add_value("loss", loss_sum)
        meter.add_value("grad_norm", norm)
        meter.count("tokens", sum(p.tokens_T.numel() for p in packs))

    def _value(self, packed: Packed, loss: Loss, total: float) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the step's loss, and its metrics."""
        packed = packed.to(self.device)
        losses, metrics = loss(self._out(packed, loss.entropy), packed.batch)
        n_seqs = packed.batch.n_seqs
        expected = {"sequence": n_seqs, "pair": n_seqs // 2}.get(loss.unit, packed.batch.seq_N.numel())
        if losses.shape != (expected,):
            raise ValueError(f"{type(loss).__name__} must return one number per {loss.unit}, shape ({expected},), "
                             f"and returned shape {tuple(losses.shape)}")  # fmt: skip
        return losses.sum() / total, metrics

    def _accumulate(self, packed: Packed, loss: Loss, total: float) -> tuple[Tensor, tuple[()], dict[str, Tensor]]:
        """Backward with the gradients accumulated in the parameters' `.grad`, without a second copy."""
        with torch.enable_grad():
            value, metrics = self._value(packed, loss, total)
            value.backward()
        return value.detach(), (), metrics

    def _gradients(
        self, packed: Packed, loss: Loss, total: float
    ) -> tuple[Tensor, tuple[Tensor | None, ...], dict[str, Tensor]]:
        """Backward with the gradients returned, so that parallel workers do not write to the same `.grad`."""
        with torch.enable_grad():
            value, metrics = self._value(packed, loss, total)
            grads = torch.autograd.grad(value, list(self.trained.values()), allow_unused=True)
        return value.detach(), grads, metrics

    # ------------------------------------------------------------ weights

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The model's parameters by name, live (not copies). For reading only: bfloat16 parameters are overwritten from
        the optimiser's float32 master weights at every step."""
        return iter(self.model.named_parameters())

    def freeze(self) -> Engine:
        """A frozen engine with a copy of the current model."""
        import copy

        model = copy.deepcopy(self.model).requires_grad_(False)
        return Engine(
            model, None, budget=self.budget, share_prefix=self.share_prefix, temperature=self.temperature
        )

    def save(self, directory: Path) -> None:
        """Writes the trained weights and the optimiser's state (safetensors and JSON)."""
        if self.optimizer is None:
            raise ValueError("a frozen engine has nothing to save")
        self.optimizer.save(directory)

    def load(self, directory: Path) -> None:
        """The inverse of `save`, bit for bit."""
        if self.optimizer is None:
            raise ValueError("a frozen engine has nothing to load")
        self.optimizer.load(directory)


def _minibatches(units: Sequence[Unit], n: int, *, shuffle: int | None) -> list[list[Unit]]:
    """Splits units into n parts of nearly equal size, never between neighbours that share a prompt if avoidable."""
    blocks: list[list[Unit]] = []
    for unit in units:
        if blocks and _same_prompt(blocks[-1][-1], unit):
            blocks[-1].append(unit)
        else:
            blocks.append([unit])
    if len(blocks) < n:
        blocks = [[u] for u in units]
    if len(blocks) < n:
        raise ValueError(f"{len(units)} units cannot be split into {n} minibatches")
    if shuffle is not None:
        order = torch.randperm(len(blocks), generator=rng.generator(shuffle)).tolist()
        blocks = [blocks[i] for i in order]
    size, parts, done = len(units) / n, [[] for _ in range(n)], 0
    for i, block in enumerate(blocks):
        # the part in which this block's middle falls, such that every later part can still get a block
        part = min(int((done + len(block) / 2) / size), n - 1)
        part = max(part, n - (len(blocks) - i))
        while part and not parts[part - 1]:
            part -= 1
        parts[part].extend(block)
        done += len(block)
    return parts


def _same_prompt(a: Unit, b: Unit) -> bool:
    if isinstance(a, Pair) or isinstance(b, Pair):
        return False
    n = prompt_length(a)
    return n == prompt_length(b) and torch.equal(a.tokens[:n], b.tokens[:n])


class _Meter:
    """Averages metrics over the elements they are measured on; "..._max" metrics take the maximum, counts add up."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.ns: dict[str, int] = {}
        self.maxima: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, x in metrics.items():
            if not x.numel():
                continue
            if name.endswith("_max"):
                self.maxima[name] = max(self.maxima.get(name, float("-inf")), x.max().item())
            else:
                self.sums[name] = self.sums.get(name, 0.0) + x.sum().item()
                self.ns[name] = self.ns.get(name, 0) + x.numel()

    def add_value(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.ns[name] = self.ns.get(name, 0) + 1

    def count(self, name: str, value: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value

    def total(self, name: str) -> float:
        return self.counts[name]

    def merge(self, other: _Meter) -> None:
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.ns[name] = self.ns.get(name, 0) + other.ns[name]
        for name, value in other.maxima.items():
            self.maxima[name] = max(self.maxima.get(name, float("-inf")), value)
        for name, value in other.counts.items():
            self.count(name, value)

    def result(self) -> dict[str, float]:
        means = {name: self.sums[name] / self.ns[name] for name in self.sums}
        return means | self.maxima | self.counts
