"""Attention over a packed row in 16 bits on CUDA, with torch's flash attention (Dao 2023, arXiv:2307.08691).

The kernels take concatenated sequences with separate boundaries for queries and keys, and align the causal mask to the
right: the last query of a sequence sees all of its keys. So each segment becomes one sequence whose queries are its own
tokens and whose keys are those of its ancestors and its own. Keys and values are gathered per segment, and their
gradients are summed back per token.

    q  [ prompt | answer | answer ]        k  [ prompt | prompt answer | prompt answer ]

There is no mask, no padding and no compilation. Attention from the answers to a shared prompt costs as much as if each
answer had its own copy. Left out: float32, sliding windows and soft caps, which `flex.py` computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.kernels import dispatch
from ladder.packing.prefix_tree import Segment

WIDEST = 256
MULTIPLE = 8
HALVES = (torch.float16, torch.bfloat16)


@cache
def able(device: torch.device) -> bool:
    """Whether the GPU has the kernels: NVIDIA's from Ampere on. (AMD's kernels align the causal mask differently.)"""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def knows(device: torch.device, kind: torch.dtype, width: int) -> bool:
    """Whether flash attention supports heads of type `kind` and this width on the device."""
    return dispatch.on(device) and kind in HALVES and width <= WIDEST and width % MULTIPLE == 0 and able(device)


def fits(q: Tensor, v: Tensor) -> bool:
    """Whether flash attention supports these queries and values."""
    return q.shape[-1] == v.shape[-1] and knows(q.device, q.dtype, q.shape[-1])


@dataclass(slots=True)
class FlashLayout:
    """A packed row of S segments in the kernels' layout: one sequence for each segment, K keys in all.

    queries, keys: int32 [S + 1], the offset of each sequence, and the end. longest_query, longest_key: lengths in
    tokens. of_keys [K]: the packed position of each key; None where keys are used in packed order. order [K], offsets
    [T + 1]: the copies of token t are the keys order[offsets[t]:offsets[t + 1]]. noise: the kernels' dropout state,
    which backward takes (dropout is 0).
    """

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    of_keys: Tensor | None = None
    order: Tensor | None = None
    offsets: Tensor | None = None
    noise: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> FlashLayout:
        """segments: those of a packed row, sorted by start."""

        def offsets(lengths: list[int]) -> Tensor:
            return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)).to(device)

        lengths, keys = [s.length for s in segments], [s.keys for s in segments]
        layout = cls(offsets(lengths), offsets(keys), max(lengths), max(keys))
        if keys != lengths:
            index = np.concatenate([s.line() for s in segments])
            counts = np.bincount(index, minlength=segments[-1].end)
            layout.of_keys = torch.from_numpy(index).to(device)
            layout.order = torch.from_numpy(np.argsort(index, kind="stable")).to(device)
            layout.offsets = torch.from_numpy(np.cumsum([0, *counts])).to(device)
        return layout

    def lined(self, x: Tensor) -> Tensor:
        """Gathers keys or values per segment: [T, H_kv, W] -> [K, H_kv, W]."""
        return x if self.of_keys is None else x.index_select(0, self.of_keys)

    def returned(self, x: Tensor) -> Tensor:
        """Sums the gradients of gathered keys or values per token: [K, H_kv, W] -> [T, H_kv, W]."""
        if self.order is None or self.offsets is None:
            return x
        return dispatch.must(x).gathered(x.contiguous(), self.order, self.offsets)


FORWARD = torch.ops.aten._flash_attention_forward.default
BACKWARD = torch.ops.aten._flash_attention_backward.default


def attend(q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, lines: FlashLayout, scale: float) -> tuple[Tensor, Tensor]:
    """(attention [T, H, W], log-sum-exp of the scores, which backward needs)."""
    out, lse, *noise, _ = FORWARD(
        q_THW, lines.lined(k_TKW), lines.lined(v_TKW), lines.queries, lines.keys, lines.longest_query,
        lines.longest_key, 0.0, True, False, scale=scale,
    )  # fmt: skip
    lines.noise = tuple(noise)
    return out, lse


def attend_backward(
    q_THW: Tensor,
    k_TKW: Tensor,
    v_TKW: Tensor,
    out_THW: Tensor,
    lse: Tensor,
    grad_THW: Tensor,
    lines: FlashLayout,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v."""
    assert lines.noise is not None, "attend_backward needs a call of attend before it"
    dq, dk, dv = BACKWARD(
        grad_THW, q_THW, lines.lined(k_TKW), lines.lined(v_TKW), out_THW, lse, lines.queries, lines.keys,
        lines.longest_query, lines.longest_key, 0.0, True, *lines.noise, scale=scale,
    )  # fmt: skip
    return dq.contiguous(), lines.returned(dk), lines.returned(dv)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lines: FlashLayout, scale: float) -> Tensor:
        out, lse = attend(q, k, v, lines, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.lines, ctx.scale = lines, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, lse = ctx.saved_tensors
        return *attend_backward(q, k, v, out, lse, grad.contiguous(), ctx.lines, ctx.scale), None, None


def attention(q: Tensor, k: Tensor, v: Tensor, lines: FlashLayout, scaling: float) -> Tensor:
    """See `plan.Plan.attend`; B is 1. Differentiable."""
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    return _Attend.apply(q, k, v, lines, scaling)[None]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
