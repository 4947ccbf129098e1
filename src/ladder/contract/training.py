"""The types and protocols of training: what a signal yields (Sample, Pair), the loss, and the signal itself.

Techniques differ in how they fill the columns of a `Sample`; the engine reads tokens, masks and columns and does not
know which technique filled them. This file holds types and protocols and no computation.

Shapes in names and comments: T tokens of one sequence, N trained positions of a micro-batch, S sequences of a
micro-batch, P pairs. All tensors of a `Sample` are 1-D, on the CPU, of one length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ladder.contract.batch import Batch, Out

Weights = Iterable[tuple[str, Tensor]]
"""Parameters by name."""


@dataclass(slots=True)
class Sample:
    """One token sequence with its mask and its columns.

    tokens: int64 [T]. mask: bool [T], the tokens that the loss may train, decided by provenance, never by a pad id.
    mask[t] means that the prediction of tokens[t] from tokens[:t] is trained, so mask[0] is always False.
    cols: float32 [T] each, aligned with tokens ("old_logps", "ref_logps", "advantages", ...).
    meta: prompt group, policy version, task id; no loss reads it.
    Raises ValueError if lengths or dtypes disagree.
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
    """Two answers to one prompt, `chosen` preferred over `rejected`."""

    chosen: Sample
    rejected: Sample
    meta: dict[str, Any] = field(default_factory=dict)


Unit = Sample | Pair
"""What a signal yields and a batch is made of."""


class Loss(Protocol):
    """A loss: a frozen dataclass that is its own configuration and never reduces.

    unit: what one returned number belongs to, and therefore the denominator of the engine's mean, counted over the
    whole optimiser step before its first forward pass: "token" (trained tokens), "sequence", "pair", or "padded"
    (sequences x `length`, Dr. GRPO's constant; such a loss has a field `length`).
    needs: names of the columns that it reads. entropy: whether it reads `out.entropy`.
    __call__ returns one number per unit ([N] for token and padded, [S] for sequence, [P] for pair) and metrics: 1-D
    detached tensors, which the engine averages over all their elements (a name that ends in "_max": the maximum).
    """

    @property
    def unit(self) -> Literal["token", "sequence", "padded", "pair"]: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def entropy(self) -> bool: ...
    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...


@runtime_checkable
class KnownStart(Protocol):
    """A loss whose value is known before any weight has moved, while the policy still is its reference (ln 2 for DPO);
    None where it is no constant. The first update is checked against it."""

    @property
    def at_reference(self) -> float | None: ...


class Signal(Protocol):
    """The source of the training signal: the only part that differs between techniques."""

    def batches(self) -> Iterator[list[Unit]]:
        """Yields one list of units per step; each list is passed to one call of `Engine.update`."""
        ...

    def observe(self, weights: Callable[[], Weights], version: int) -> None:
        """Called after each step with the policy's new weights (a callable, so that they are copied only on demand)."""
        ...

    def metrics(self) -> dict[str, float]:
        """Figures of the last batch (reward, length, ...), logged together with the loss's metrics."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-serialisable state. After `restore`, the next batch equals that of an uninterrupted run."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Reference(Protocol):
    """Computes columns with a model, usually the frozen reference: `engine.forward` of a snapshot, or of the policy
    with its LoRA adapter switched off."""

    def __call__(self, units: Sequence[Unit]) -> list[dict[str, Tensor]]: ...
