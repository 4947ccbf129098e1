"""The two arguments of a loss: the model's output at the trained positions of a micro-batch (`Out`), and the columns
and sequence boundaries of these positions (`Batch`)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Out:
    """The model's output at the N trained positions of a micro-batch."""

    logps: Tensor  # [N] log-probability of the token at this position, in nats
    entropy: Tensor | None = None  # [N] entropy of the next-token distribution; None unless the loss asks for it
    values: Tensor | None = None  # [N] output of the scalar head; None for a language model


@dataclass(slots=True)
class Batch:
    """The trained positions of S sequences, in order, with their columns: all that a loss knows of the layout."""

    seq_N: Tensor  # int64: index of the sequence that a position belongs to
    lengths_S: Tensor  # int64: number of trained positions of each sequence
    cols: dict[str, Tensor]  # [N] each

    @property
    def n_seqs(self) -> int:
        return self.lengths_S.numel()

    def sum(self, x_N: Tensor) -> Tensor:
        """Sum over each sequence's positions: [N] -> [S]."""
        return x_N.new_zeros(self.n_seqs).index_add(0, self.seq_N, x_N)

    def mean(self, x_N: Tensor) -> Tensor:
        """Mean over each sequence's positions: [N] -> [S]."""
        return self.sum(x_N) / self.lengths_S.to(x_N.dtype)

    def spread(self, x_S: Tensor) -> Tensor:
        """Repeats each sequence's value at all of its positions: [S] -> [N]."""
        return x_S.index_select(0, self.seq_N)

    def first(self, x_N: Tensor) -> Tensor:
        """Value at each sequence's first position, for columns that are constant over a sequence: [N] -> [S]."""
        starts = self.lengths_S.cumsum(0) - self.lengths_S
        return x_N.index_select(0, starts)

    def pairs(self, x_S: Tensor) -> tuple[Tensor, Tensor]:
        """Splits the values of interleaved pairs: [S] -> (chosen [P], rejected [P]). Raises ValueError if S is odd."""
        if self.n_seqs % 2:
            raise ValueError("this batch holds single samples, not pairs")
        return x_S[0::2], x_S[1::2]
