"""The engine: tokens, masks, columns and losses in; gradients out. It knows no technique's name.

Six verbs: forward, update, weights, freeze, save, load. One optimiser step is

    (1 / count) * sum over units of loss(policy(tokens), columns)

with the count taken over the whole step before its first forward pass, so every split into micro-batches gives
the same gradient. A step whose loss or gradient is not finite changes nothing and stops the run.
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
"""Tokens of a micro-batch where nothing else is said: products are as fast as with more, and of a model of 135 million
parameters it holds 0.9 GB."""
ELSEWHERE = 8192
"""A GPU wants thousands of rows."""


class Engine:
    """A causal language model, or one with a scalar head, under training (with `optim`) or frozen (without).

    budget: most tokens of one micro-batch; it bounds memory and changes no gradient (None: PROCESSOR or ELSEWHERE).
    temperature: of the distribution whose log-probabilities are meant (the sampler's). checkpointing: recompute
    activations in backward. total_steps: of the learning-rate schedule, in optimiser steps. workers: threads that run
    micro-batches side by side, each with its own copy of the gradients, summed in order: for models so small that one
    operator cannot fill the cores. without: a context in which the model is another one (an adapter switched off); only
    `forward(reference=True)` enters it.
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
        self.in_place = workers == 1  # workers take their gradients apart
        self.pool = ThreadPoolExecutor(workers) if workers > 1 else None
        if workers > 1:
            sys.setswitchinterval(1e-4)  # with the default 5 ms the threads wait for each other's interpreter
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
        """Columns of every sequence in order, float32 [T] on the CPU, 0 off the mask: {"logps", "entropy"?}, or
        {"values"} of a scalar head, each at the position whose hidden state comes before the masked token."""
        samples = list(sequences(units))
        columns: list[dict[str, Tensor]] = []
        at = 0
        if reference and self.without is None:
            raise ValueError("this engine has no adapter to switch off: freeze() a copy for the reference")
        with torch.no_grad(), self.without() if reference and self.without else nullcontext():
            for packed in pack(units, (), self.budget, self.share_prefix):
                packed = packed.to(self.device)
                out = self._out(packed, entropy)
                named = {"logps": out.logps} if out.values is None else {"values": out.values}
                named |= {} if out.entropy is None else {"entropy": out.entropy}
                parts = {
                    name: x.float().cpu().split(packed.batch.lengths_S.tolist()) for name, x in named.items()
                }
                for i in range(packed.batch.n_seqs):
                    mask = samples[at].mask
                    columns.append(
                        {n: torch.zeros(len(mask)).masked_scatter_(mask, p[i]) for n, p in parts.items()}
                    )
                    at += 1
        return columns

    def _out(self, packed: Packed, entropy: bool) -> Out:
        asked = self._hidden(packed)
        if isinstance(self.head, ScalarHead):
            values = self.head.values(asked)
            return Out(values.new_full(values.shape, math.nan), None, values)  # no loss may read a log-probability
        return Out(
            *token_logps(
                asked,
                self.head,
                packed.tgt_N,
                temperature=self.temperature,
                entropy=entropy,
                in_place=self.in_place,
            )
        )

    def _hidden(self, packed: Packed) -> Tensor:
        """[N, D]: the last hidden states of the positions that predict."""
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
        """`epochs` passes over the units, each in `minibatches` optimiser steps; returns figures of all steps.

        "loss", "grad_norm", "lr", "tokens", "tokens_per_s" and the loss's own metrics, averaged over what they
        are measured on; "first/..." are those of the first optimiser step, measured before any weight moved.
        Minibatches keep the answers to one prompt together and are shuffled by `key` after the first epoch.
        Raises ValueError when there is nothing to train, NotFinite when a number is not.
        """
        if self.optimizer is None:
            raise ValueError("this engine is frozen: it has no optimiser")
        if not units:
            raise ValueError("nothing to train: the batch is empty")
        start, meter, first = time.perf_counter(), _Meter(), {}
        for epoch in range(epochs):
            for part in _minibatches(units, minibatches, shuffle=rng.key(key, epoch) if epoch else None):
                one = _Meter()
                self._step(part, loss, one)
                first = first or {f"first/{k}": v for k, v in one.result().items() if k != "tokens"}
                meter.merge(one)
        figures = meter.result() | first
        figures["lr"] = self.optimizer.last_lr
        figures["tokens_per_s"] = meter.total("tokens") / (time.perf_counter() - start)
        return figures

    def _step(self, units: Sequence[Unit], loss: Loss, meter: _Meter) -> None:
        """One optimiser step."""
        assert self.optimizer is not None
        total = count(units, loss)
        packs = pack(units, loss.needs, self.budget, self.share_prefix, self.workers)
        parts = self.pool.map(lambda p: self._gradients(p, loss, total), packs) if self.pool else None
        if parts is None:
            parts = (self._accumulate(p, loss, total) for p in packs)
        figures: list[tuple[Tensor, dict[str, Tensor]]] = []  # read when all is under way: a GPU would wait
        try:
            for value, grads, metrics in parts:
                for param, grad in zip(self.trained.values(), grads, strict=False):
                    if grad is not None:
                        param.grad = grad if param.grad is None else param.grad.add_(grad)
                self.optimizer.gather()
                figures.append((value, metrics))
            loss_sum = 0.0
            for value, metrics in figures:
                loss_sum += value.item()
                meter.add(metrics)
        except BaseException:  # half a step's gradients must not flow into the next step
            self.optimizer.zero_grad()
            raise
        if not math.isfinite(loss_sum):
            self.optimizer.zero_grad()
            raise NotFinite(f"the loss is {loss_sum} at optimiser step {self.optimizer.step_count}")
        norm = self.optimizer.step()
        meter.one("loss", loss_sum)
        meter.one("grad_norm", norm)
        meter.count("tokens", sum(p.tokens_T.numel() for p in packs))

    def _value(self, packed: Packed, loss: Loss, total: float) -> tuple[Tensor, dict[str, Tensor]]:
        packed = packed.to(self.device)
        each, metrics = loss(self._out(packed, loss.entropy), packed.batch)
        return each.sum() / total, metrics

    def _accumulate(self, packed: Packed, loss: Loss, total: float) -> tuple[Tensor, tuple[()], dict[str, Tensor]]:
        """Gradients straight into the parameters: no second copy."""
        with torch.enable_grad():
            value, metrics = self._value(packed, loss, total)
            value.backward()
        return value.detach(), (), metrics

    def _gradients(
        self, packed: Packed, loss: Loss, total: float
    ) -> tuple[Tensor, tuple[Tensor | None, ...], dict[str, Tensor]]:
        """Gradients apart, so that workers do not meet in the parameters."""
        with torch.enable_grad():
            value, metrics = self._value(packed, loss, total)
            grads = torch.autograd.grad(value, list(self.trained.values()), allow_unused=True)
        return value.detach(), grads, metrics

    # ------------------------------------------------------------ weights

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The model's parameters by name, live (not copies). They are for reading: the optimiser writes halves anew
        from float32 weights of its own."""
        return iter(self.model.named_parameters())

    def freeze(self) -> Engine:
        """A frozen copy of the model as it is now."""
        import copy

        model = copy.deepcopy(self.model).requires_grad_(False)
        return Engine(
            model, None, budget=self.budget, share_prefix=self.share_prefix, temperature=self.temperature
        )

    def save(self, directory: Path) -> None:
        """Writes what training changed: trained weights and the optimiser's state (safetensors and JSON)."""
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
        # the part this block's middle falls into, yet so that every later part can still get a block
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
    """Averages metrics over the elements they are measured on; "_max" takes the maximum, counts add up."""

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

    def one(self, name: str, value: float) -> None:
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
