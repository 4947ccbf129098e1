"""Packing: units concatenated into micro-batches without padding, with shared prefixes stored once.

A micro-batch is one row of segments (`prefix_tree.py`). Neighbouring sequences that begin with the same untrained
tokens share them: answers to one prompt, the two sides of a pair, conversations with the same system prompt. Sequences
branch off where they first differ, at any number of depths. A query attends to its own segment up to itself and to the
whole of every ancestor segment, so logits and gradients equal those of each sequence alone.

Only tokens that a prediction needs are computed: the model reads each sequence up to the token before its last trained
one, and the output head is applied at trained positions only (`Packed.src_N` is the position whose hidden state
predicts, `tgt_N` the token to predict). The loss sees those N positions and nothing else, so it needs neither masks nor
padding.
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
"""Factor by which the target size of a micro-batch grows from one attempt at equal sizes to the next."""


@dataclass(slots=True)
class Packed:
    """One micro-batch: the model's input, the positions that predict, and the batch that the loss reads."""

    tokens_T: Tensor
    positions_T: Tensor  # position in the sequence
    segments: Sequence[Segment]
    src_N: Tensor  # the packed position whose hidden state predicts
    tgt_N: Tensor  # the token to predict
    batch: Batch

    def to(self, device: torch.device) -> Packed:
        if device.type == "cpu":
            return self
        batch = self.batch
        cols = {name: column.to(device) for name, column in batch.cols.items()}
        return Packed(
            self.tokens_T.to(device),
            self.positions_T.to(device),
            self.segments,
            self.src_N.to(device),
            self.tgt_N.to(device),
            Batch(batch.seq_N.to(device), batch.lengths_S.to(device), cols),
        )


def sequences(units: Sequence[Unit]) -> Iterator[Sample]:
    """The sequences of the units in order: of a pair the chosen one, then the rejected one."""
    for unit in units:
        if isinstance(unit, Pair):
            yield unit.chosen
            yield unit.rejected
        else:
            yield unit


def count(units: Sequence[Unit], loss: Loss) -> float:
    """The divisor of the whole optimiser step: how many of the loss's units (tokens, sequences, pairs) `units` hold.

    Raises ValueError when the loss takes pairs and the units are samples or the reverse, and when nothing is trained.
    """
    is_pair = [isinstance(u, Pair) for u in units]
    if (loss.unit == "pair") != all(is_pair) or (any(is_pair) and not all(is_pair)):
        raise ValueError(f"{type(loss).__name__} takes {'pairs' if loss.unit == 'pair' else 'samples'} only")
    match loss.unit:
        case "token":
            total = sum(int(s.mask.sum()) for s in sequences(units))
        case "sequence" | "pair":
            total = len(units)
        case "padded":
            total = len(units) * int(loss.length)  # pyright: ignore[reportAttributeAccessIssue]
        case _:
            raise ValueError(
                f"{type(loss).__name__}.unit is {loss.unit!r}; it must be 'token', 'sequence', 'pair' or 'padded'"
            )
    if not total:
        raise ValueError("nothing to train: the batch has no trained token")
    return float(total)


def pack(
    units: Sequence[Unit], needs: Sequence[str], budget: int, share_prefix: bool = True, lanes: int = 1
) -> list[Packed]:
    """Packs the units into micro-batches of at most `budget` tokens each (a single larger unit gets its own).

    The micro-batches are of about equal size. There are at most as many as the budget requires, rounded up to a
    multiple of `lanes`, the number of workers. needs: names of the columns to include. The order of the units is kept,
    so results can be matched to `sequences(units)`. Raises ValueError for a sample without a trained token or without a
    needed column.
    """
    if budget < 1:
        raise ValueError(f"budget must be positive, got {budget}")
    prepared: list[list[_Sequence]] = []
    before: _Sequence | None = None
    for unit in units:
        prepared.append([])
        for sample in (unit.chosen, unit.rejected) if isinstance(unit, Pair) else (unit,):
            before = _Sequence.after(before if share_prefix else None, sample)
            prepared[-1].append(before)
    return [layout.finish(needs) for layout in _split_evenly(prepared, budget, lanes)]


def _split_evenly(units: Sequence[Sequence[_Sequence]], budget: int, lanes: int) -> list[_Layout]:
    """One micro-batch if the budget holds all units; otherwise micro-batches of about equal size.

    Filling up to the budget gives the smallest number of micro-batches; the units are then filled again up to the
    smallest size that still needs no more of them.
    """
    fullest = _fill(units, budget)
    n = -(-len(fullest) // lanes) * lanes
    if n <= 1:
        return fullest
    size = sum(layout.tokens for layout in fullest) / n
    while size < budget:
        even = _fill(units, int(size))
        if len(even) <= n:
            return even
        size *= CLOSER
    return fullest


def _fill(units: Sequence[Sequence[_Sequence]], budget: int) -> list[_Layout]:
    """Greedy in order: a new micro-batch is opened when a unit does not fit into the last one."""
    layouts: list[_Layout] = []
    for unit in units:
        if not layouts or not layouts[-1].add(unit, budget):
            layouts.append(_Layout())
            layouts[-1].add(unit, None)
    return layouts


def prompt_length(sample: Sample) -> int:
    """Tokens before the first trained one."""
    return int(sample.mask.numpy().argmax())


@dataclass(slots=True)
class _Sequence:
    """A sample prepared for packing.

    trained: indices of its trained tokens. read: its tokens up to the one that predicts the last trained token. common:
    length of the prefix it has in common with the sequence before it, as far as neither trains a token in it.
    """

    sample: Sample
    trained: np.ndarray
    read: np.ndarray
    common: int

    @classmethod
    def after(cls, before: _Sequence | None, sample: Sample) -> _Sequence:
        trained = _trained_indices(sample)
        read, common = sample.tokens.numpy()[: trained[-1]], 0
        if before is not None:
            common = prefix_tree.common(before.read, read, int(min(trained[0], before.trained[0])))
        return cls(sample, trained, read, common)


class _Layout:
    """One micro-batch under construction.

    This code runs once per sample and step, so it uses numpy views: for short samples the overhead of a torch call
    exceeds the work it does.
    """

    def __init__(self) -> None:
        self.sequences: list[_Sequence] = []
        self.shared: list[int] = []  # how many tokens each sequence shares with the one before it
        self.forks: list[int] = []  # prefix lengths, ascending, at which the last sequence branched off from others
        self.tokens = 0

    def add(self, unit: Sequence[_Sequence], budget: int | None) -> bool:
        """Adds a unit if it fits into the budget (None: no limit), and returns whether it did."""
        forks, tokens, shared = list(self.forks), self.tokens, []
        for sequence in unit:
            is_first = not (self.sequences or shared)
            shared.append(0 if is_first else prefix_tree.fork(forks, sequence.common, len(sequence.read)))
            tokens += len(sequence.read) - shared[-1]
        if budget is not None and tokens > budget:
            return False
        self.sequences += unit
        self.shared += shared
        self.forks, self.tokens = forks, tokens
        return True

    def finish(self, needs: Sequence[str]) -> Packed:
        row = prefix_tree.grown([sequence.read for sequence in self.sequences], self.shared)
        trained = [sequence.trained for sequence in self.sequences]
        samples = [sequence.sample for sequence in self.sequences]
        src = [_predicting_positions(leaf, t) for leaf, t in zip(row.leaves, trained, strict=True)]
        lengths = np.array([len(t) for t in trained])
        cols = {name: torch.cat([_masked_column(s, name) for s in samples]) for name in needs}
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


def _predicting_positions(leaf: Segment, trained: np.ndarray) -> np.ndarray:
    """Packed positions whose hidden states predict the trained tokens of the sequence that ends with `leaf`."""
    positions = trained + (leaf.start - leaf.prefix_length - 1)
    if leaf.parent is not None and trained[0] == leaf.prefix_length:
        positions[0] = leaf.parent.end - 1  # the last shared token predicts the first trained one
    return positions


def _trained_indices(sample: Sample) -> np.ndarray:
    """Raises ValueError when no token is trained."""
    trained = np.flatnonzero(sample.mask.numpy())
    if not trained.size:
        raise ValueError(f"a sample of {len(sample.tokens)} tokens has nothing to train (meta: {sample.meta})")
    return trained


def _masked_column(sample: Sample, name: str) -> Tensor:
    """The column at trained positions. Raises ValueError when the sample lacks it."""
    if name not in sample.cols:
        raise ValueError(f"the loss needs the column {name!r}; the sample has {sorted(sample.cols) or 'none'}")
    return sample.cols[name][sample.mask]
