"""Sampling tokens on CUDA, in Triton: inverse-CDF sampling as in `decoding/draw.py`, in two passes; the first reads all
logits, the second one block of them.

    blocks       maximum and sum of exp(z - maximum) of each block of the vocabulary
    choose       the block in which the uniform random number falls, then the token in it

Sums over blocks are computed in float64, sums inside a block in float32.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# Triton's language has no types that pyright could check

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

STRETCH = 4096
"""Logits in one block of the vocabulary."""


@triton.jit
def _block_sums(Z, TOPS, SUMS, stride, V, n, scale, SIZE: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    v = part * SIZE + tl.arange(0, SIZE)
    z = tl.load(Z + row * stride + v, v < V, float("-inf")).to(tl.float32) * scale
    top = tl.max(z, 0)
    tl.store(TOPS + row * n + part, top)
    finite_top = tl.where(top > float("-inf"), top, 0.0)  # if all logits are -inf, the sum is 0 and not NaN
    tl.store(SUMS + row * n + part, tl.sum(tl.exp(z - finite_top), 0))


@triton.jit(do_not_specialize=["rows"])
def _choose(Z, TOPS, SUMS, UNIFORM, OUT, rows, stride, V, n, scale, SIZE: tl.constexpr, MANY: tl.constexpr):
    """OUT [2, rows] float64: the sampled token and its log-probability."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, MANY)
    tops = tl.load(TOPS + row * n + part, part < n, float("-inf"))
    top = tl.max(tops, 0)
    sums = tl.load(SUMS + row * n + part, part < n, 0.0).to(tl.float64) * tl.exp((tops - top).to(tl.float64))
    ends = tl.cumsum(sums, 0)
    total = tl.sum(sums, 0)
    target = tl.load(UNIFORM + row) * total
    last_block = tl.max(tl.where(sums > 0, part, 0), 0)  # rounding can leave the target beyond the end of all blocks
    chosen = tl.minimum(tl.sum((ends <= target).to(tl.int32), 0), last_block)
    before = tl.sum(tl.where(part < chosen, sums, 0.0), 0)
    lane = tl.arange(0, SIZE)
    v = chosen * SIZE + lane
    z = tl.load(Z + row * stride + v, v < V, float("-inf")).to(tl.float32) * scale
    e = tl.exp(z - top)
    passed = tl.cumsum(e, 0) <= (target - before).to(tl.float32)
    last = tl.max(tl.where(e > 0, lane, 0), 0)  # rounding can leave the target beyond the end of the chosen block
    chosen_lane = tl.minimum(tl.sum(passed.to(tl.int32), 0), last)
    token_logit = tl.sum(tl.where(lane == chosen_lane, z, 0.0), 0)
    tl.store(OUT + row, (chosen * SIZE + chosen_lane).to(tl.float64))
    tl.store(OUT + rows + row, (token_logit - top).to(tl.float64) - tl.log(total))


def draw(logits_AV: Tensor, uniform_A: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens int64 [A] sampled from softmax(logits / temperature) and their log-probabilities float32 [A], both on the
    CPU, with one synchronisation. uniform_A: uniform random numbers in [0, 1)."""
    A, V = logits_AV.shape
    n = triton.cdiv(V, STRETCH)
    tops, sums = torch.empty(2, A, n, dtype=torch.float32, device=logits_AV.device)
    out = torch.empty(2, A, dtype=torch.float64, device=logits_AV.device)
    stride, scale = logits_AV.stride(0), 1.0 / temperature
    _block_sums[(A, n)](logits_AV, tops, sums, stride, V, n, scale, STRETCH)
    uniform = uniform_A.to(logits_AV.device)
    _choose[(A,)](
        logits_AV, tops, sums, uniform, out, A, stride, V, n, scale, STRETCH, triton.next_power_of_2(n), num_warps=8
    )
    tokens, logps = out.cpu()
    return tokens.long(), logps.float()
