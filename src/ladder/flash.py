"""Attention of plain segments by the package flash-attn, where it is installed: packed rows of halves, on CUDA.

It knows neither a segment that continues another nor float32; `flex.py` has those. It has not run on CUDA yet.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

WIDEST = 256
HALVES = (torch.float16, torch.bfloat16)


@cache
def installed() -> bool:
    return find_spec("flash_attn") is not None


def fits(q: Tensor, v: Tensor) -> bool:
    """Whether it takes heads of this type and width."""
    return q.dtype in HALVES and q.shape[-1] == v.shape[-1] <= WIDEST and installed()


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scaling: float) -> Tensor:
    """See `attention.Plan`; B is 1. bounds int32 [n + 1]: where each segment begins, and the end."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    out = flash_attn_varlen_func(q, k, v, bounds, bounds, longest, longest, softmax_scale=scaling, causal=True)
    return out[None]
