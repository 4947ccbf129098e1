"""Packing: units laid end to end without padding, a common beginning laid down once, and what a loss sees of it.

A pack is a row of segments (`forest.py`). Neighbours that begin with the same untrained tokens share them: answers to
one prompt, sides of a pair, conversations that open with the same instructions. The sequence forks where they part,
and forks again where some of them part later. A query sees its own segment up to itself and the whole of every segment
that leads to it, so logits and gradients equal those of each sequence alone.

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

from ladder.contract.batch import Batch
from ladder.contract.training import Loss, Pair, Sample, Unit
from ladder.packing import prefix_tree
from ladder.packing.prefix_tree import Segment

CLOSER = 1.03
"""How much closer to even the packs of a step are cut, from one try to the next."""


@dataclass(slots=True)
class Packed:
    """One micro-batch: what the model reads, where it is asked, and what the loss is told."""

    tokens_T: Tensor
    positions_T: Tensor
    segments: Sequence[Segment]
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
            self.segments,
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


def pack(
    units: Sequence[Unit], needs: Sequence[str], budget: int, share_prefix: bool = True, lanes: int = 1
) -> list[Packed]:
    """Lays the units into micro-batches of at most `budget` tokens each (a single larger unit gets its own).

    There are as few as the budget allows and `lanes` can work off side by side, about equally large. needs: the columns
    carried along. Order is kept, so results can be matched to `sequences(units)`.
    """
    if budget < 1:
        raise ValueError(f"budget must be positive, got {budget}")
    read: list[list[_Sequence]] = []
    before: _Sequence | None = None
    for unit in units:
        read.append([])
        for sample in (unit.chosen, unit.rejected) if isinstance(unit, Pair) else (unit,):
            before = _Sequence.after(before if share_prefix else None, sample)
            read[-1].append(before)
    return [layout.finish(needs) for layout in _cut(read, budget, lanes)]


def _cut(units: Sequence[Sequence[_Sequence]], budget: int, lanes: int) -> list[_Layout]:
    """One pack where the budget holds all, otherwise filled to what cuts the units into as many parts of one size."""
    found = _filled(units, budget)
    n = -(-len(found) // lanes) * lanes
    if n <= 1:
        return found
    size = sum(layout.tokens for layout in found) / n
    while size < budget:
        closer = _filled(units, int(size))
        if len(closer) <= n:
            return closer
        size *= CLOSER
    return found


def _filled(units: Sequence[Sequence[_Sequence]], budget: int) -> list[_Layout]:
    packs: list[_Layout] = []
    for unit in units:
        if not packs or not packs[-1].add(unit, budget):
            packs.append(_Layout())
            packs[-1].add(unit, None)
    return packs


def prompt_length(sample: Sample) -> int:
    """Tokens before the first trained one."""
    return int(sample.mask.numpy().argmax())


@dataclass(slots=True)
class _Sequence:
    """A sample as packing sees it. read: its tokens up to the one that predicts its last trained one. common: how many
    tokens before anything is trained it has in common with the sequence before it."""

    sample: Sample
    trained: np.ndarray
    read: np.ndarray
    common: int

    @classmethod
    def after(cls, before: _Sequence | None, sample: Sample) -> _Sequence:
        trained = _trained(sample)
        read, common = sample.tokens.numpy()[: trained[-1]], 0
        if before is not None:
            common = prefix_tree.common(before.read, read, int(min(trained[0], before.trained[0])))
        return cls(sample, trained, read, common)


class _Layout:
    """The packing of one micro-batch while it grows.

    Runs once per sample and step, so it works on numpy views: for short samples a torch call costs more than
    what it computes.
    """

    def __init__(self) -> None:
        self.sequences: list[_Sequence] = []
        self.shared: list[int] = []  # tokens that each shares with the one before it
        self.forks: list[int] = []  # where the last sequence parted from others, in ascending order
        self.tokens = 0

    def add(self, unit: Sequence[_Sequence], budget: int | None) -> bool:
        """Whether it still fits; if not, nothing has changed."""
        forks, tokens, shared = list(self.forks), self.tokens, []
        for one in unit:
            shared.append(prefix_tree.fork(forks, one.common, len(one.read)) if self.sequences or shared else 0)
            tokens += len(one.read) - shared[-1]
        if budget is not None and tokens > budget:
            return False
        self.sequences += unit
        self.shared += shared
        self.forks, self.tokens = forks, tokens
        return True

    def finish(self, needs: Sequence[str]) -> Packed:
        row = prefix_tree.grown([one.read for one in self.sequences], self.shared)
        trained = [one.trained for one in self.sequences]
        samples = [one.sample for one in self.sequences]
        src = [_predicting(leaf, t) for leaf, t in zip(row.leaves, trained, strict=True)]
        lengths = np.array([len(t) for t in trained])
        cols = {name: torch.cat([_column(s, name) for s in samples]) for name in needs}
        targets = [s.tokens.numpy()[t] for s, t in zip(samples, trained, strict=True)]
        return Packed(
            torch.from_numpy(row.tokens),
            torch.from_numpy(row.positions),
            row.segments,
            torch.from_numpy(np.concatenate(src)),
            torch.from_numpy(np.concatenate(targets)),
            Batch(
                torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)), torch.from_numpy(lengths), cols
            ),
        )


def _predicting(leaf: Segment, trained: np.ndarray) -> np.ndarray:
    """The packed places of what predicts the trained tokens of a sequence that ends with the leaf."""
    where = trained + (leaf.start - leaf.above - 1)
    if leaf.parent is not None and trained[0] == leaf.above:
        where[0] = leaf.parent.end - 1  # the last shared token predicts the first trained one
    return where


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
