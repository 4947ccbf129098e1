"""What a loss is told: the model's output at the trained positions of a micro-batch, and their columns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Out:
    """What the model says at the N trained positions of a micro-batch."""

    logps: Tensor  # [N] log-probability of the token that stands there
    entropy: Tensor | None = None  # [N] of the whole distribution there
    values: Tensor | None = None  # [N] a scalar head's output there; None for a language model


@dataclass(slots=True)
class Batch:
    """The trained positions of S sequences, in order, with their columns; what a loss may know of the layout."""

    seq_N: Tensor  # int64: the sequence each position belongs to
    lengths_S: Tensor  # int64: trained positions of each sequence
    cols: dict[str, Tensor]  # [N] each

    @property
    def n_seqs(self) -> int:
        return self.lengths_S.numel()

    def sum(self, x_N: Tensor) -> Tensor:
        """[N] -> [S]."""
        return x_N.new_zeros(self.n_seqs).index_add(0, self.seq_N, x_N)

    def mean(self, x_N: Tensor) -> Tensor:
        """[N] -> [S]."""
        return self.sum(x_N) / self.lengths_S.to(x_N.dtype)

    def spread(self, x_S: Tensor) -> Tensor:
        """[S] -> [N]: every position gets its sequence's value."""
        return x_S.index_select(0, self.seq_N)

    def first(self, x_N: Tensor) -> Tensor:
        """[N] -> [S]: the value at each sequence's first position (for columns that are constant over it)."""
        starts = self.lengths_S.cumsum(0) - self.lengths_S
        return x_N.index_select(0, starts)

    def pairs(self, x_S: Tensor) -> tuple[Tensor, Tensor]:
        """[S] -> (chosen [P], rejected [P])."""
        if self.n_seqs % 2:
            raise ValueError("this batch holds single samples, not pairs")
        return x_S[0::2], x_S[1::2]
