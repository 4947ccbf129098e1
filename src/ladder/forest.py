"""A packed row as a forest: segments of tokens, each of which may continue another one, on which it stands.

    [ the opening all share | one prompt | an answer | another answer | the next prompt | its answer | ... ]

A query sees its own segment up to itself and the whole of every segment below it. What stands on a segment is laid
right behind it, so a key is seen by exactly the queries from itself to the end of what stands on its segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


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
