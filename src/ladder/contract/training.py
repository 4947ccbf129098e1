"""The contract of training: what a signal yields (Sample, Pair), what a loss is, what the one loop asks of a signal.

A technique is whoever fills the columns of a `Sample`; the engine reads tokens, masks and columns and never knows who
filled them. This file holds types and protocols and nothing that computes.

Shapes in names and comments: T tokens of one sequence, N trained positions of a micro-batch, S sequences of a
micro-batch, P pairs. All `Sample` tensors are 1-D, on the CPU, of one length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ladder.contract.batch import Batch, Out





Weights = Iterable[tuple[str, Tensor]]


@dataclass(slots=True)
class Sample:
    """One token sequence and what is known about each of its tokens.

    tokens: int64 [T]. mask: bool [T], a token the loss may train; provenance decides, never a pad id. A mask
    at position t means "the prediction of tokens[t] from tokens[:t] is trained"; mask[0] is always False.
    cols: float32 [T] each, aligned with tokens ("old_logps", "ref_logps", "advantages", ...).
    meta: prompt group, policy version, task id; no loss reads it.
    Raises ValueError when lengths or dtypes disagree.
    """

    tokens: Tensor
    mask: Tensor
    cols: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or self.tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be int64 [T], got {self.tokens.dtype} {tuple(self.tokens.shape)}")
        if self.mask.dtype != torch.bool or self.mask.shape != self.tokens.shape:
            raise ValueError(
                f"mask must be bool {tuple(self.tokens.shape)}, got {self.mask.dtype} {tuple(self.mask.shape)}"
            )
        for name, col in self.cols.items():
            if col.dtype != torch.float32 or col.shape != self.tokens.shape:
                raise ValueError(
                    f"column {name!r} must be float32 {tuple(self.tokens.shape)}, "
                    f"got {col.dtype} {tuple(col.shape)}"
                )
        if len(self.mask) and bool(self.mask[0]):
            raise ValueError("mask[0] is True: nothing predicts a sequence's first token")


@dataclass(slots=True)
class Pair:
    """Two sequences of one prompt, the first preferred to the second."""

    chosen: Sample
    rejected: Sample
    meta: dict[str, Any] = field(default_factory=dict)


Unit = Sample | Pair


class Loss(Protocol):
    """A frozen dataclass that is its own configuration; it never reduces.

    unit: what one returned number stands for, and so what the engine divides by, counted over the whole
    optimiser step before its first forward pass: "token" (trained tokens), "sequence", "pair", or "padded"
    (sequences x `length`, Dr. GRPO's constant; such a loss has a field `length`).
    needs: columns it reads. entropy: whether it reads `out.entropy`.
    __call__ returns one number per unit ([N] for token and padded, [S], [P]) and metrics: 1-D detached tensors
    averaged over all their elements (a name that ends in "_max" takes the maximum).
    """

    @property
    def unit(self) -> Literal["token", "sequence", "padded", "pair"]: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def entropy(self) -> bool: ...
    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...


class Signal(Protocol):
    """Where the training signal comes from: the only thing that differs between techniques."""

    def batches(self) -> Iterator[list[Unit]]:
        """One list of units per step; each is one call of `Engine.update`."""
        ...

    def observe(self, weights: Callable[[], Weights], version: int) -> None:
        """Called after each step with the policy's new weights (a callable, so a copy is made only on demand)."""
        ...

    def metrics(self) -> dict[str, float]:
        """Figures of the last batch (reward, length, ...), logged beside the loss's."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-able; with `restore`, the next batch is the one an undisturbed run would see."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Reference(Protocol):
    """Columns of a frozen model: `engine.forward` of a snapshot, or with the adapter switched off."""

    def __call__(self, units: Sequence[Unit]) -> list[dict[str, Tensor]]: ...
