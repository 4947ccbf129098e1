"""Attention over a packed row in packed order on CUDA: flex attention under a block mask made from the segments.

`packed.py` gathers segments into padded batches for SDPA, which costs copies and one call for each batch; it is the
path on other devices and the oracle for this one. Here the row is divided into blocks of 128 tokens. Pairs of blocks
without a visible key are skipped, pairs in which every query sees every key use no mask, and the rest evaluate three
numbers for each token:

    a query at packed position q sees a key at k if k <= q, q lies before the end of the subtree of k's segment
    (`prefix_tree.until`), and k's position in the sequence is at least q's floor (q's position - window + 1).

The row is padded to whole blocks and compiled for dynamic lengths, so another row compiles nothing; windows and soft
caps are tensors for the same reason. Uncompiled, flex attention computes the same on any device, which is how it is
tested without a GPU.

Left out: heads narrower than 16, which its kernels do not support.
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
ScoreFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""flex attention's score_mod: (score, batch, head, query position, key position) -> score."""


def fits(q: Tensor, v: Tensor) -> bool:
    """Whether flex attention supports these queries and values; never on a device other than CUDA."""
    return dispatch.on(q.device) and q.dtype in dispatch.TYPES and min(q.shape[-1], v.shape[-1]) >= NARROWEST


def seen(segment: Segment, low: int, high: int, window: int) -> Iterator[tuple[int, int]]:
    """Ranges [start, end) of packed keys, one for each segment of the sequence: from the first key that query `low` of
    the segment sees to the last key that query `high` sees.

    With low <= high this is the union of the keys that the queries between them see, with low >= high their
    intersection. An empty range has start >= end.
    """
    floor = segment.prefix_length + low - segment.start - window + 1 if window else 0  # lowest position in the sequence
    for s in segment.chain():
        yield s.start + max(0, floor - s.prefix_length), high + 1 if s is segment else s.end


@dataclass(slots=True)
class FlexLayout:
    """A packed row and the block masks made for it. segments: sorted by start. masks: by window."""

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
        end, position, floor = self._token_columns(window)

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (k <= q) & (q < end[k]) & (position[k] >= floor[q])

        nonempty, full = self.blocks(window)
        lists = [x.to(self.device) for grid in (nonempty & ~full, full) for x in _block_lists(grid)]
        return BlockMask.from_kv_blocks(
            *lists, BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(self.padded, self.padded)
        )

    def _token_columns(self, window: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each token, int32 [padded]: the packed end of the queries that see it, its position in the sequence, and
        the lowest position that it sees. Every pad is a segment by itself, so that it sees at least one key."""
        end, position = np.arange(self.padded) + 1, np.zeros(self.padded, np.int64)
        for s, subtree_end in zip(self.segments, prefix_tree.until(self.segments), strict=True):
            end[s.start : s.end], position[s.start : s.end] = subtree_end, s.prefix_length + np.arange(s.length)
        floor = position - window + 1 if window else np.zeros_like(position)
        columns = torch.from_numpy(np.stack([end, position, floor]).astype(np.int32)).to(self.device)
        end_, position_, floor_ = columns
        return end_, position_, floor_

    def blocks(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Two bool [query blocks, key blocks]: where some query sees some key, and where all queries see all keys.

        The second holds only blocks whose keys are of one segment: a block in which another segment begins uses the
        mask even where it hides nothing.
        """
        n = self.padded // BLOCK
        visible, full_queries = np.zeros((n, n), np.bool_), np.zeros((n, n), np.int64)  # queries that see all keys
        for s in self.segments:
            for i in range(s.start // BLOCK, (s.end - 1) // BLOCK + 1):
                first, last = max(s.start, i * BLOCK), min(s.end, (i + 1) * BLOCK) - 1
                for low, high in seen(s, first, last, window):
                    if low < high:
                        visible[i, low // BLOCK : (high - 1) // BLOCK + 1] = True
                for low, high in seen(s, last, first, window):
                    full_queries[i, -(-low // BLOCK) : high // BLOCK] += last - first + 1
        return visible, full_queries == BLOCK


def attend(row: FlexLayout, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, window: int, softcap: float) -> Tensor:
    """See `plan.Plan.attend`; B is 1 and L is the packed length."""
    T = q.shape[2]
    padding = row.padded - T
    q, k, v = (F.pad(x, (0, 0, 0, padding)).contiguous() for x in (q, k, v))
    attention = _compiled() if q.device.type == "cuda" else flex_attention
    out = attention(
        q, k, v, score_mod=_soft_cap(softcap, q.device) if softcap else None, block_mask=row.mask(window),
        scale=scaling, enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out[:, :, :T].transpose(1, 2)


@cache
def _compiled() -> Any:
    """Compiled flex attention. fullgraph: exceeding dynamo's recompilation limit is an error; without it, dynamo would
    silently run the uncompiled function."""
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def _soft_cap(softcap: float, device: torch.device) -> ScoreFunction:
    cap = torch.tensor(softcap, device=device)

    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def _block_lists(grid: np.ndarray) -> tuple[Tensor, Tensor]:
    """A bool grid [n, n] as flex attention's lists: how many key blocks each query block has [1, 1, n], and the indices
    of all key blocks with those of the grid first [1, 1, n, n]."""
    counts = torch.from_numpy(grid.sum(1).astype(np.int32))
    order = torch.from_numpy(np.argsort(~grid, 1, kind="stable").astype(np.int32))
    return counts[None, None], order[None, None]
