"""A packed row as prefix trees: a prefix that several sequences share is stored once, and the sequences branch off it.

A `Segment` is a run of consecutive tokens in the row that may continue another segment, its parent. A sequence is the
path from a root to one segment. Here three sequences share a system prompt S, and two of them a question Q:

    S --+-- Q --+-- A1          packed row:  [ S | Q | A1 | A2 | R ]
        |       +-- A2
        +-- R                   A2: prefix_length = len(S) + len(Q),  keys = prefix_length + len(A2)

A query attends to its own segment up to itself and to the whole of every ancestor segment. The descendants of a segment
follow it directly in the row (depth-first order), so a key is visible to exactly the queries from its own position to
the end of its segment's subtree.

The trees are built from sequences in their given order: each shares with the sequence before it their longest common
prefix, as far as that may be shared. Only neighbouring sequences are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

MIN_SHARED = 4
"""Fewest tokens that a new branch point must share in addition to those shared at an existing one."""
LEAST = 32
"""They must also be at least 1 / LEAST of the sequence: where attention needs a mask to share less, the mask costs more
than sharing saves."""
TokenArray = np.ndarray
"""Token ids, int64 [T]."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """`length` tokens from packed position `start`; they continue the sequence of `parent`, if there is one."""

    start: int
    length: int
    parent: Segment | None = None

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def prefix_length(self) -> int:
        """Tokens before this segment in its sequence: those of all its ancestors."""
        return self.parent.keys if self.parent else 0

    @property
    def keys(self) -> int:
        """Tokens of the sequence that ends with this segment: the keys its last query attends to."""
        return self.length + self.prefix_length

    def chain(self) -> Iterator[Segment]:
        """This segment, its parent, and so on to the root."""
        segment: Segment | None = self
        while segment is not None:
            yield segment
            segment = segment.parent

    def line(self) -> np.ndarray:
        """Packed positions of the sequence that ends with this segment, in sequence order, [keys]."""
        return np.concatenate([np.arange(s.start, s.end) for s in self.chain()][::-1])


def laid(segments: Sequence[Segment], tokens: int) -> list[Segment]:
    """The segments sorted by start. Asserts that they tile a row of `tokens` tokens and that descendants directly
    follow their ancestor."""
    row = sorted(segments, key=lambda s: s.start)
    end, path = 0, []
    for s in row:
        assert s.start == end and s.length > 0, "segments must tile the packed row"
        while path and path[-1] is not s.parent:
            path.pop()
        assert s.parent is None or path, "the descendants of a segment must follow it directly"
        path.append(s)
        end = s.end
    assert end == tokens, "segments must tile the packed row"
    return row


def until(row: Sequence[Segment]) -> list[int]:
    """For each segment of a row sorted by `laid`: the packed position where its subtree ends."""
    ends = [s.end for s in row]
    index_of = {s: i for i, s in enumerate(row)}
    for i in range(len(row) - 1, -1, -1):
        parent = row[i].parent
        if parent is not None:
            ends[index_of[parent]] = max(ends[index_of[parent]], ends[i])
    return ends


def families(row: Sequence[Segment]) -> list[list[Segment]]:
    """The trees of a row sorted by `laid`, each a root with all its descendants, those with most attention first."""
    trees: list[list[Segment]] = []
    for s in row:
        if s.parent is None:
            trees.append([])
        trees[-1].append(s)
    return sorted(trees, key=lambda tree: -sum(s.length * s.keys for s in tree))


# ------------------------------------------------------------ building a row from sequences


def common(before: TokenArray, tokens: TokenArray, most: int) -> int:
    """Length of the common prefix of two sequences, at most `most`; neither sequence is shorter than `most`."""
    differ = before[:most] != tokens[:most]
    return int(differ.argmax()) if differ.any() else most


def fork(forks: list[int], common: int, length: int) -> int:
    """How many tokens a sequence of `length` tokens shares with the sequence before it.

    common: the length of their common prefix. forks: prefix lengths, ascending, at which the sequence before branched
    off from earlier ones; updated in place for this sequence.
    """
    while forks and forks[-1] > common:
        forks.pop()
    deepest = forks[-1] if forks else 0
    if common - deepest < max(MIN_SHARED, length / LEAST):
        return deepest
    forks.append(common)
    return common


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One packed row. tokens, positions (in the sequence): [T]. leaves: the last segment of each sequence."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: list[Segment]
    leaves: list[Segment]


def grown(sequences: Sequence[TokenArray], shared: Sequence[int]) -> PackedRow:
    """Packs sequences into a row. shared: how many tokens each shares with the one before it (see `fork`).

    No sequence may be empty.
    """
    spans: list[tuple[TokenArray, int, int]] = []
    segments: list[Segment] = []
    leaves: list[Segment] = []
    path: list[Segment] = []  # from the root to the segment that the current sequence has reached
    at = 0
    for i, tokens in enumerate(sequences):
        while path and path[-1].keys > shared[i]:
            path.pop()
        depth = path[-1].keys if path else 0
        assert depth == shared[i], "a sequence may branch off only where a segment ends"
        for end in (*_later_forks(shared, i), len(tokens)):
            if end > depth:
                path.append(Segment(at, end - depth, path[-1] if path else None))
                segments.append(path[-1])
                spans.append((tokens, depth, end))
                at, depth = path[-1].end, end
        leaves.append(path[-1])
    return PackedRow(
        np.concatenate([tokens[a:b] for tokens, a, b in spans]),
        np.concatenate([np.arange(a, b) for _, a, b in spans]),
        segments,
        leaves,
    )


def _later_forks(shared: Sequence[int], i: int) -> list[int]:
    """Prefix lengths, ascending, at which later sequences branch off from the tokens that sequence i adds."""
    lengths: list[int] = []
    for j in range(i + 1, len(shared)):
        if shared[j] <= shared[i]:
            break
        if not lengths or shared[j] < lengths[-1]:
            lengths.append(shared[j])
    return lengths[::-1]
