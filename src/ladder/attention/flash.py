"""Attention of a packed row of halves on CUDA, by the flash attention that torch brings (Dao 2023, arXiv:2307.08691).

Its kernels take sequences end to end, queries and keys each with their own bounds, and read "causal" from the right:
the last query of a sequence sees all of its keys. So a segment that continues others is a sequence whose keys are those
of all of them: keys and values are gathered into lines, one for each segment, and their gradients are gathered back.

    q  [ prompt | answer | answer ]        k  [ prompt | prompt answer | prompt answer ]

Float32, windows and soft caps are left to `flex.py`. No mask, no padding, no compilation; what a prompt costs its
answers in attention is what it would cost them apart.
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
    """Whether the GPU has the kernels: NVIDIA's from Ampere on. (AMD's read "causal" in a way of their own.)"""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def knows(device: torch.device, kind: torch.dtype, width: int) -> bool:
    """Whether it takes heads of this type and width there."""
    return dispatch.on(device) and kind in HALVES and width <= WIDEST and width % MULTIPLE == 0 and able(device)


def fits(q: Tensor, v: Tensor) -> bool:
    """Whether it takes these."""
    return q.shape[-1] == v.shape[-1] and knows(q.device, q.dtype, q.shape[-1])


@dataclass(slots=True)
class Lines:
    """A packed row as the kernels read it. queries, keys int32 [S + 1]: where each sequence begins, and the end.

    of_keys [K]: the packed token of each key; None: as they lie. order [K], offsets [T + 1]: what was made of a token t
    stands at order[offsets[t]], ... noise: what the kernels return for dropout, of which there is none."""

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    of_keys: Tensor | None = None
    order: Tensor | None = None
    offsets: Tensor | None = None
    noise: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> Lines:
        def edges(lengths: list[int]) -> Tensor:
            return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)).to(device)

        lengths, keys = [s.length for s in segments], [s.keys for s in segments]
        made = cls(edges(lengths), edges(keys), max(lengths), max(keys))
        if keys != lengths:
            index = np.concatenate([s.line() for s in segments])
            counts = np.bincount(index, minlength=segments[-1].end)
            made.of_keys = torch.from_numpy(index).to(device)
            made.order = torch.from_numpy(np.argsort(index, kind="stable")).to(device)
            made.offsets = torch.from_numpy(np.cumsum([0, *counts])).to(device)
        return made

    def lined(self, x: Tensor) -> Tensor:
        """Keys or values [T, H_kv, W] -> [K, H_kv, W]."""
        return x if self.of_keys is None else x.index_select(0, self.of_keys)

    def returned(self, x: Tensor) -> Tensor:
        """Gradients by what is lined -> those by keys or values."""
        if self.order is None or self.offsets is None:
            return x
        return dispatch.must(x).gathered(x.contiguous(), self.order, self.offsets)


FORWARD = torch.ops.aten._flash_attention_forward.default
BACKWARD = torch.ops.aten._flash_attention_backward.default


def attend(q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, lines: Lines, scale: float) -> tuple[Tensor, Tensor]:
    """(attention [T, H, W], what backward needs of the scores)."""
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
    lines: Lines,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by q, k and v."""
    assert lines.noise is not None, "forward comes first"
    dq, dk, dv = BACKWARD(
        grad_THW, q_THW, lines.lined(k_TKW), lines.lined(v_TKW), out_THW, lse, lines.queries, lines.keys,
        lines.longest_query, lines.longest_key, 0.0, True, *lines.noise, scale=scale,
    )  # fmt: skip
    return dq.contiguous(), lines.returned(dk), lines.returned(dv)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lines: Lines, scale: float) -> Tensor:
        out, lse = attend(q, k, v, lines, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.lines, ctx.scale = lines, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, lse = ctx.saved_tensors
        return *attend_backward(q, k, v, out, lse, grad.contiguous(), ctx.lines, ctx.scale), None, None


def attention(q: Tensor, k: Tensor, v: Tensor, lines: Lines, scaling: float) -> Tensor:
    """See `attention.Plan`; B is 1. Differentiable."""
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    return _Attend.apply(q, k, v, lines, scaling)[None]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
