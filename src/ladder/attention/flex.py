"""Attention of a packed row as it lies, on CUDA: flex attention under a block mask made from the segments.

`segments.py` gathers segments into padded batches for SDPA, which costs copies and a call for each size; it is the
path everywhere else, and the oracle. Here blocks of 128 tokens that see nothing of each other are left out, those that
see all of each other take no mask, and the rest ask three numbers of a token:

    a query sees the keys from the first of the row to itself that are seen as far as it (`forest.until`),
    if their position in the sequence is not below the query's floor (its position less the window).

The row is padded to whole blocks and compiled for lengths that vary, so another pack compiles nothing; windows and
soft caps are tensors for the same reason. Uncompiled, flex attention computes the same on any device, and so it is
tested where there is no GPU.

Left out: heads narrower than 16, which its kernels do not take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ladder.kernels import dispatch
from ladder.packing import prefix_tree
from ladder.packing.prefix_tree import Segment

BLOCK = 128
NARROWEST = 16
Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def fits(q: Tensor, v: Tensor) -> bool:
    """Whether these are attended to here; nothing on another device ever is."""
    return dispatch.on(q.device) and q.dtype in dispatch.TYPES and min(q.shape[-1], v.shape[-1]) >= NARROWEST


def seen(segment: Segment, low: int, high: int, window: int) -> Iterator[tuple[int, int]]:
    """The stretches of keys from the first that query `low` of the segment sees to the last that query `high` sees.

    With low <= high that is all that any query between them sees, with low >= high what every one sees."""
    reach = segment.above + low - segment.start - window + 1 if window else 0  # the lowest position in the sequence
    for s in segment.chain():
        yield s.start + max(0, reach - s.above), high + 1 if s is segment else s.end


@dataclass(slots=True)
class Row:
    """A packed row, its segments as they lie, with what has been made for it: masks by window."""

    segments: Sequence[Segment]
    device: torch.device
    masks: dict[int, BlockMask] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.segments[-1].end

    @property
    def padded(self) -> int:
        return -(-self.tokens // BLOCK) * BLOCK

    def mask(self, window: int) -> BlockMask:
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int) -> BlockMask:
        end, place, floor = self._columns(window)

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (k <= q) & (q < end[k]) & (place[k] >= floor[q])

        some, whole = self.blocks(window)
        lists = [x.to(self.device) for grid in (some & ~whole, whole) for x in _listed(grid)]
        return BlockMask.from_kv_blocks(
            *lists, BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(self.padded, self.padded)
        )

    def _columns(self, window: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token: how far it is seen, its position in the sequence, and the lowest position it sees. Every pad
        is a segment of its own, so that it sees something."""
        end, place = np.arange(self.padded) + 1, np.zeros(self.padded, np.int64)
        for s, last in zip(self.segments, prefix_tree.until(self.segments), strict=True):
            end[s.start : s.end], place[s.start : s.end] = last, s.above + np.arange(s.length)
        floor = place - window + 1 if window else np.zeros_like(place)
        columns = torch.from_numpy(np.stack([end, place, floor]).astype(np.int32)).to(self.device)
        end_, place_, floor_ = columns
        return end_, place_, floor_

    def blocks(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """bool [blocks, blocks]: where a query sees some key, and where all queries see all keys, if those are of one
        segment: the block in which another one begins takes the mask even where it hides nothing."""
        n = self.padded // BLOCK
        some, queries = np.zeros((n, n), np.bool_), np.zeros((n, n), np.int64)  # how many queries see all keys
        for s in self.segments:
            for i in range(s.start // BLOCK, (s.end - 1) // BLOCK + 1):
                first, last = max(s.start, i * BLOCK), min(s.end, (i + 1) * BLOCK) - 1
                for low, high in seen(s, first, last, window):
                    if low < high:
                        some[i, low // BLOCK : (high - 1) // BLOCK + 1] = True
                for low, high in seen(s, last, first, window):
                    queries[i, -(-low // BLOCK) : high // BLOCK] += last - first + 1
        return some, queries == BLOCK


def attend(row: Row, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, window: int, softcap: float) -> Tensor:
    """See `attention.Plan`; B is 1 and L is the packed length."""
    T = q.shape[2]
    wide = row.padded - T
    q, k, v = (F.pad(x, (0, 0, 0, wide)).contiguous() for x in (q, k, v))
    run = _compiled() if q.device.type == "cuda" else flex_attention
    out = run(
        q, k, v, score_mod=_capped(softcap, q.device) if softcap else None, block_mask=row.mask(window),
        scale=scaling, enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out[:, :, :T].transpose(1, 2)


@cache
def _compiled() -> Any:
    """fullgraph: past dynamo's bound on recompilations an error, where it would else go on uncompiled in silence."""
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def _capped(softcap: float, device: torch.device) -> Score:
    cap = torch.tensor(softcap, device=device)

    def bounded(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return bounded


def _listed(grid: np.ndarray) -> tuple[Tensor, Tensor]:
    """A grid of blocks as flex attention has it: how many in each row [1, 1, n]; which, those first [1, 1, n, n]."""
    counts = torch.from_numpy(grid.sum(1).astype(np.int32))
    order = torch.from_numpy(np.argsort(~grid, 1, kind="stable").astype(np.int32))
    return counts[None, None], order[None, None]
