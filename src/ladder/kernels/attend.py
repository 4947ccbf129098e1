"""Attention over a packed row in C (`attend.c`), forward and backward, for float32 tensors on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.kernels.library import Address, Float, Int, address, declared, library, readable
from ladder.packing.prefix_tree import Segment

ARGUMENTS = {
    "attend_room": [Int, Int],
    "attend_forward": [Address] * 4 + [Int] * 4 + [Float, Address, Address, Address, Int, Int],
    "attend_backward": [Address] * 8 + [Int] * 4 + [Float] + [Address] * 5 + [Int, Int],
}


def kernels() -> Any:
    """The compiled library, or None (`library.why` gives the reason)."""
    return declared(library("attend"), ARGUMENTS, {"attend_room": Int})


def usable(x: Tensor) -> bool:
    """Whether the kernels support tensors of this device and dtype."""
    return readable(x) and kernels() is not None


class Families:
    """The segments of a packed row in the kernels' layout: tree by tree, those with most work first, so that threads
    finish at about the same time.

    spans [S, 5]: start, length, index of the parent (-1: none), prefix length, and the sum of the prefix lengths of all
    spans before. families [n + 1]: index of the first span of each tree, and the end. keys: most keys of one segment.
    prefix_tokens: sum of all prefix lengths.
    """

    def __init__(self, groups: Sequence[Sequence[Segment]]) -> None:
        """groups: the segments of each tree, parents before their children (`prefix_tree.families`)."""
        segments = [s for group in groups for s in group]
        index_of = {s: i for i, s in enumerate(segments)}
        prefix_lengths = np.array([s.prefix_length for s in segments])
        parents = [index_of[s.parent] if s.parent else -1 for s in segments]
        starts, lengths = [s.start for s in segments], [s.length for s in segments]
        columns = starts, lengths, parents, prefix_lengths, prefix_lengths.cumsum() - prefix_lengths
        self.spans = np.ascontiguousarray(np.stack([np.asarray(c) for c in columns], 1), np.int64)
        self.families = np.cumsum([0, *map(len, groups)], dtype=np.int64)
        self.keys, self.prefix_tokens = max(s.keys for s in segments), int(prefix_lengths.sum())
        self.scratch: Tensor | None = None

    def room(self, W: int, threads: int) -> tuple[Tensor, int]:
        """Scratch memory for all threads, and the floats that each thread has of it. W: width of a head."""
        each = kernels().attend_room(self.keys, W)
        if self.scratch is None or self.scratch.numel() < each * threads:
            self.scratch = torch.empty(each * threads)
        return self.scratch, each


def attend(q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, families: Families, scale: float) -> tuple[Tensor, Tensor]:
    """(attention output [T, H, W], log-sum-exp of the scores [T, H]) for H query heads, K key heads of width W."""
    T, H, W = q_THW.shape
    threads = torch.get_num_threads()
    scratch, each = families.room(W, threads)
    out, lse = torch.empty_like(q_THW), q_THW.new_empty(T, H)
    kernels().attend_forward(
        address(q_THW), address(k_TKW), address(v_TKW), families.spans.ctypes.data, len(families.spans), H,
        k_TKW.shape[1], W, scale, address(out), address(lse), address(scratch), each, threads,
    )  # fmt: skip
    return out, lse


def attend_backward(
    q_THW: Tensor,
    k_TKW: Tensor,
    v_TKW: Tensor,
    out_THW: Tensor,
    lse_TH: Tensor,
    grad_THW: Tensor,
    families: Families,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v."""
    H, W = q_THW.shape[1:]
    threads = torch.get_num_threads()
    scratch, each = families.room(W, threads)
    dq, dk, dv = torch.empty_like(q_THW), torch.empty_like(k_TKW), torch.empty_like(v_TKW)
    prefix_grads = q_THW.new_empty(families.prefix_tokens, 2, *k_TKW.shape[1:])
    kernels().attend_backward(
        address(q_THW), address(k_TKW), address(v_TKW), address(out_THW), address(lse_TH), address(grad_THW),
        families.spans.ctypes.data, families.families.ctypes.data, len(families.families) - 1, H, k_TKW.shape[1], W,
        scale, address(dq), address(dk), address(dv), address(prefix_grads), address(scratch), each, threads,
    )  # fmt: skip
    return dq, dk, dv
