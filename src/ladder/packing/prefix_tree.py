"""A packed row as a forest: segments of tokens, each of which may continue another one, on which it stands.

    [ the opening all share | one prompt | an answer | another answer | the next prompt | its answer | ... ]

A query sees its own segment up to itself and the whole of every segment below it. What stands on a segment is laid
right behind it, so a key is seen by exactly the queries from itself to the end of what stands on its segment.

It grows from sequences in their order: each shares with the one before it what both begin with, as far as that may be
shared. Only neighbours are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

MIN_SHARED = 4
"""A common beginning shorter than this is not worth a segment of its own,"""
LEAST = 32
"""nor one shorter than this part of the sequence: where attention needs a mask for it, that costs more."""
Tokens = np.ndarray
"""int64 [T]"""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """`length` tokens from packed position `start`, continuing `parent` if there is one."""

    start: int
    length: int
    parent: Segment | None = None

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def above(self) -> int:
        """Tokens before its first one in the sequence: those that it continues."""
        return self.parent.keys if self.parent else 0

    @property
    def keys(self) -> int:
        return self.length + self.above

    def chain(self) -> Iterator[Segment]:
        """It, what it continues, and so on."""
        at: Segment | None = self
        while at is not None:
            yield at
            at = at.parent

    def line(self) -> np.ndarray:
        """Packed positions of the sequence that ends with it, [keys]."""
        return np.concatenate([np.arange(s.start, s.end) for s in self.chain()][::-1])


def laid(segments: Sequence[Segment], tokens: int) -> list[Segment]:
    """By start. Asserts that they tile a row of `tokens` tokens, what stands on a segment right behind it."""
    row = sorted(segments, key=lambda s: s.start)
    at, standing = 0, []
    for s in row:
        assert s.start == at and s.length > 0, "segments must tile the packed row"
        while standing and standing[-1] is not s.parent:
            standing.pop()
        assert s.parent is None or standing, "what continues a segment must stand behind it"
        standing.append(s)
        at = s.end
    assert at == tokens, "segments must tile the packed row"
    return row


def until(row: Sequence[Segment]) -> list[int]:
    """Of each segment of a laid row: the end of all that stands on it."""
    ends = [s.end for s in row]
    place = {s: i for i, s in enumerate(row)}
    for i in range(len(row) - 1, -1, -1):
        parent = row[i].parent
        if parent is not None:
            ends[place[parent]] = max(ends[place[parent]], ends[i])
    return ends


def families(row: Sequence[Segment]) -> list[list[Segment]]:
    """Of a laid row: each segment that continues nothing with all that stands on it, the most attention first."""
    found: list[list[Segment]] = []
    for s in row:
        if s.parent is None:
            found.append([])
        found[-1].append(s)
    return sorted(found, key=lambda family: -sum(s.length * s.keys for s in family))


# ------------------------------------------------------------ growing


def common(before: Tokens, tokens: Tokens, most: int) -> int:
    """How many of the first `most` tokens are the same; neither has fewer."""
    differ = before[:most] != tokens[:most]
    return int(differ.argmax()) if differ.any() else most


def fork(forks: list[int], common: int, length: int) -> int:
    """How much a sequence of `length` tokens shares that has `common` tokens in common with the one before it.

    forks: where the one before parted from others, in ascending order; brought up to this one."""
    while forks and forks[-1] > common:
        forks.pop()
    deepest = forks[-1] if forks else 0
    if common - deepest < max(MIN_SHARED, length / LEAST):
        return deepest
    forks.append(common)
    return common


@dataclass(frozen=True, slots=True)
class Row:
    """tokens, positions [T], as they lie. leaves: each sequence's deepest segment."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: list[Segment]
    leaves: list[Segment]


def grown(sequences: Sequence[Tokens], shared: Sequence[int]) -> Row:
    """The row of sequences that share so many tokens with the one before (`fork`). None is empty."""
    spans: list[tuple[Tokens, int, int]] = []
    segments: list[Segment] = []
    leaves: list[Segment] = []
    standing: list[Segment] = []  # those that lead to where the row stands in the last sequence
    at = 0
    for i, tokens in enumerate(sequences):
        while standing and standing[-1].keys > shared[i]:
            standing.pop()
        depth = standing[-1].keys if standing else 0
        assert depth == shared[i], "a fork lies between segments"
        for to in (*_ahead(shared, i), len(tokens)):
            if to > depth:
                standing.append(Segment(at, to - depth, standing[-1] if standing else None))
                segments.append(standing[-1])
                spans.append((tokens, depth, to))
                at, depth = standing[-1].end, to
        leaves.append(standing[-1])
    return Row(
        np.concatenate([tokens[a:b] for tokens, a, b in spans]),
        np.concatenate([np.arange(a, b) for _, a, b in spans]),
        segments,
        leaves,
    )


def _ahead(shared: Sequence[int], i: int) -> list[int]:
    """Where sequences that follow part from what sequence i lays down, in ascending order."""
    found: list[int] = []
    for j in range(i + 1, len(shared)):
        if shared[j] <= shared[i]:
            break
        if not found or shared[j] < found[-1]:
            found.append(shared[j])
    return found[::-1]
