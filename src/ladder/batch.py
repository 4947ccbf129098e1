"""Packing: units laid end to end without padding, a shared prompt laid down once, and what a loss sees of it.

A pack is a row of segments. A sequence on its own is one segment; sequences that open with the same untrained
prompt share one prompt segment, and each continues it in a segment of its own. A query sees its own segment up
to itself and the whole of the segment it continues, so logits and gradients equal those of each sequence alone.

Only what predicts something is computed: the model reads each sequence up to the token before its last trained
one, and the vocabulary is reached at trained positions only (`Packed.src_N` names the hidden state, `tgt_N` the
token it has to predict). The loss sees those N positions and nothing else: it never meets a mask or a pad.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ladder.segments import PackedPlan, Segment
from ladder.types import Loss, Pair, Sample, Unit

MIN_SHARED = 4
"""A shared prompt shorter than this is not worth a segment of its own."""


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


@dataclass(slots=True)
class Packed:
    """One micro-batch: what the model reads, where it is asked, and what the loss is told."""

    tokens_T: Tensor
    positions_T: Tensor
    plan: PackedPlan
    src_N: Tensor  # the packed position whose hidden state predicts
    tgt_N: Tensor  # the token it predicts
    batch: Batch

    def to(self, device: torch.device) -> Packed:
        if device.type == "cpu":
            return self
        b = self.batch
        cols = {k: v.to(device) for k, v in b.cols.items()}
        return Packed(
            self.tokens_T.to(device),
            self.positions_T.to(device),
            self.plan.to(device),
            self.src_N.to(device),
            self.tgt_N.to(device),
            Batch(b.seq_N.to(device), b.lengths_S.to(device), cols),
        )


def sequences(units: Sequence[Unit]) -> Iterator[Sample]:
    """The units' sequences in order: a pair is its chosen, then its rejected."""
    for unit in units:
        if isinstance(unit, Pair):
            yield unit.chosen
            yield unit.rejected
        else:
            yield unit


def count(units: Sequence[Unit], loss: Loss) -> float:
    """What the whole optimiser step divides by: the number of the loss's units in `units`.

    Raises ValueError when the units are not of the loss's kind or nothing is trained.
    """
    paired = [isinstance(u, Pair) for u in units]
    if (loss.unit == "pair") != all(paired) or (any(paired) and not all(paired)):
        raise ValueError(f"{type(loss).__name__} takes {'pairs' if loss.unit == 'pair' else 'samples'} only")
    match loss.unit:
        case "token":
            total = sum(int(s.mask.sum()) for s in sequences(units))
        case "sequence" | "pair":
            total = len(units)
        case "padded":
            total = len(units) * int(loss.length)  # pyright: ignore[reportAttributeAccessIssue]
        case _:
            raise ValueError(f"{type(loss).__name__} counts in {loss.unit!r}, which is no unit")
    if not total:
        raise ValueError("nothing to train: the batch holds no trained token")
    return float(total)


def pack(units: Sequence[Unit], needs: Sequence[str], budget: int, share_prefix: bool = True) -> list[Packed]:
    """Lays the units into micro-batches of at most `budget` tokens each (a single larger unit gets its own).

    needs: the columns carried along. Order is kept, so results can be matched to `sequences(units)`.
    """
    if budget < 1:
        raise ValueError(f"budget must be positive, got {budget}")
    packs: list[_Layout] = []
    layout = _Layout(share_prefix)
    for unit in units:
        samples = [unit.chosen, unit.rejected] if isinstance(unit, Pair) else [unit]
        longest = sum(len(s.tokens) for s in samples)  # at most; the exact cost is asked only near the end
        if layout.tokens and layout.tokens + longest > budget and layout.tokens + layout.cost(samples) > budget:
            packs.append(layout)
            layout = _Layout(share_prefix)
        for i, sample in enumerate(samples):
            layout.add(sample, partner=i > 0)
    packs.append(layout)
    return [p.finish(needs) for p in packs if p.samples]


def prompt_length(sample: Sample) -> int:
    """Tokens before the first trained one."""
    return int(sample.mask.numpy().argmax())


class _Layout:
    """The packing of one micro-batch while it grows. A prompt is shared with the sequence just before; the sides of a
    pair share all that is the same before anything is trained (for a scalar head, their answers' beginning too).

    Runs once per sample and step, so it works on numpy views: for short samples a torch call costs more than
    what it computes.
    """

    def __init__(self, share_prefix: bool) -> None:
        self.share_prefix = share_prefix
        self.samples: list[Sample] = []
        self.trained: list[np.ndarray] = []  # trained indices of each sequence
        self.shared: list[int] = []  # tokens that it has in common with the sequence before it; 0: laid down whole
        self.tokens = 0

    def cost(self, samples: Sequence[Sample]) -> int:
        """Tokens these would add."""
        total, before, shared = 0, self.samples[-1] if self.samples else None, self.shared[-1] if self.shared else 0
        for i, s in enumerate(samples):
            trained = _trained(s)
            shared = self._shares(before, shared, s, trained, partner=i > 0)
            total += int(trained[-1]) - shared
            before = s
        return total

    def add(self, sample: Sample, partner: bool) -> None:
        """partner: it is the other side of the pair whose first side was added last."""
        trained = _trained(sample)
        before, group = (self.samples[-1], self.shared[-1]) if self.samples else (None, 0)
        shared = self._shares(before, group, sample, trained, partner)
        self.samples.append(sample)
        self.trained.append(trained)
        self.shared.append(shared)
        self.tokens += int(trained[-1]) - shared

    def _shares(self, before: Sample | None, group: int, sample: Sample, trained: np.ndarray, partner: bool) -> int:
        """How much of the sequence before is shared, which itself shares `group` tokens with those before it."""
        if not self.share_prefix or before is None:
            return 0
        most, theirs = int(trained[0]), prompt_length(before)
        if theirs != most:
            most = min(most, theirs) if partner else 0
        if most < MIN_SHARED:
            return 0
        differ = np.flatnonzero(before.tokens.numpy()[:most] != sample.tokens.numpy()[:most])
        common = most if not differ.size else int(differ[0]) if partner else 0
        if group:
            return group if common >= group else 0
        return common if common >= MIN_SHARED else 0

    def finish(self, needs: Sequence[str]) -> Packed:
        spans: list[tuple[np.ndarray, int, int]] = []  # tokens, from, to: what is laid, in order
        segments: list[Segment] = []
        src: list[np.ndarray] = []
        at = 0

        def lay(sample: Sample, start: int, stop: int, parent: Segment | None) -> Segment:
            nonlocal at
            segment = Segment(at, stop - start, parent)
            if stop > start:
                spans.append((sample.tokens.numpy(), start, stop))
                segments.append(segment)
            at += stop - start
            return segment

        prompt: Segment | None = None
        split = 0
        for i, (sample, trained) in enumerate(zip(self.samples, self.trained, strict=True)):
            first, last = int(trained[0]), int(trained[-1])
            if not self.shared[i]:
                split = self.shared[i + 1] if i + 1 < len(self.shared) else 0
                prompt = lay(sample, 0, split, None) if split else None
            if prompt is None:
                own = lay(sample, 0, last, None)
                src.append(trained + (own.start - 1))
            else:
                own = lay(sample, split, last, prompt)
                where = trained + (own.start - split - 1)
                if first == split:
                    where[0] = prompt.start + first - 1  # the prompt's last token predicts the first trained one
                src.append(where)
        lengths = np.array([len(t) for t in self.trained])
        cols = {name: torch.cat([_column(s, name) for s in self.samples]) for name in needs}
        targets = [s.tokens.numpy()[t] for s, t in zip(self.samples, self.trained, strict=True)]
        return Packed(
            torch.from_numpy(np.concatenate([tokens[a:b] for tokens, a, b in spans])),
            torch.from_numpy(np.concatenate([np.arange(a, b) for _, a, b in spans])),
            PackedPlan.of(segments, at),
            torch.from_numpy(np.concatenate(src)),
            torch.from_numpy(np.concatenate(targets)),
            Batch(
                torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)), torch.from_numpy(lengths), cols
            ),
        )


def _trained(sample: Sample) -> np.ndarray:
    """Trained indices. Raises ValueError when there are none."""
    trained = np.flatnonzero(sample.mask.numpy())
    if not trained.size:
        raise ValueError(f"a sample of {len(sample.tokens)} tokens has nothing to train (meta: {sample.meta})")
    return trained


def _column(sample: Sample, name: str) -> Tensor:
    if name not in sample.cols:
        raise ValueError(f"the loss needs the column {name!r}; the sample has {sorted(sample.cols) or 'none'}")
    return sample.cols[name][sample.mask]
