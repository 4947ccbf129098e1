"""Attention of one decoding step on CUDA, in Triton: new keys and values enter the cache, then each row attends.

    enter     norms (Qwen 3) and rotates queries and keys, and writes keys and values to the cache at the row's position
    attend    flash decoding (Dao et al. 2023): splits of the keys in parallel, then their combination

A cache ("store") is [slots, key heads, room, W]. A row reads its keys up to its position and no further, so unused room
costs memory only. Of what the host knows, the kernels depend on the number of rows alone, so a step can be captured in
a CUDA graph.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# Triton's language has no types that pyright could check

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

STRETCH = 256
"""Keys that one program reads."""
KEYS = 64
"""Keys of one matrix product, halved until four such tiles fit into shared memory."""
SHARED = 96 << 10
"""Bytes of shared memory that the kernels may use: that of the smallest supported GPUs."""
LEAST = 16
"""Smallest dimension of a matrix product in Triton: the queries of one key head are padded to this many rows."""


@triton.jit
def _norm_and_rotate(X, W, NORM: tl.constexpr, eps, COS, SIN, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """One head, normed if NORM, and rotated: float32 [WIDE]. The first half of SIN is negated."""
    d = tl.arange(0, WIDE)
    mask = d < WIDTH
    other = tl.where(d < WIDTH // 2, d + WIDTH // 2, d - WIDTH // 2)
    x, y = tl.load(X + d, mask, 0.0).to(tl.float32), tl.load(X + other, mask, 0.0).to(tl.float32)
    if NORM:
        r = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
        x *= r * tl.load(W + d, mask, 0.0).to(tl.float32)
        y *= r * tl.load(W + other, mask, 0.0).to(tl.float32)
    return x * tl.load(COS + d, mask, 0.0).to(tl.float32) + y * tl.load(SIN + d, mask, 0.0).to(tl.float32)


@triton.jit
def _enter(
    QKV, POSITIONS, COS, SIN, QW, KW, Q, KEYS_, VALUES, eps, room,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(POSITIONS + row)
    d = tl.arange(0, WIDE)
    mask = d < WIDTH
    x = QKV + (row * (HEADS + 2 * KEY_HEADS) + head) * WIDTH
    cos, sin = COS + position * WIDTH, SIN + position * WIDTH
    if head < HEADS:
        q = _norm_and_rotate(x, QW, NORM, eps, cos, sin, WIDTH, WIDE)
        tl.store(Q + (row * HEADS + head) * WIDTH + d, q.to(Q.dtype.element_ty), mask)
    elif head < HEADS + KEY_HEADS:
        k = _norm_and_rotate(x, KW, NORM, eps, cos, sin, WIDTH, WIDE)
        offset = ((row * KEY_HEADS + head - HEADS) * room + position) * WIDTH + d
        tl.store(KEYS_ + offset, k.to(KEYS_.dtype.element_ty), mask)
    else:
        offset = ((row * KEY_HEADS + head - HEADS - KEY_HEADS) * room + position) * WIDTH + d
        tl.store(VALUES + offset, tl.load(x + d, mask, 0.0), mask)


def enter(
    qkv_AN: Tensor,
    positions_A: Tensor,
    tables: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    stores: tuple[Tensor, Tensor],
) -> Tensor:
    """Rotated queries [A, H, W]; writes the rows' keys and values to the caches `stores` at their positions.

    qkv_AN: output of the query, key and value projections. tables: rotary cos and sin [length, W], the first half of
    sin negated. norms: weights of the query and key norms.
    """
    keys, values = stores
    key_heads, room, width = keys.shape[1:]
    A = len(qkv_AN)
    heads = qkv_AN.shape[1] // width - 2 * key_heads
    q = qkv_AN.new_empty(A, heads, width)
    qw, kw = norms or (qkv_AN, qkv_AN)
    _enter[(A, heads + 2 * key_heads)](
        qkv_AN, positions_A, *tables, qw, kw, q, keys, values, eps, room,
        heads, key_heads, width, triton.next_power_of_2(width), norms is not None,
    )  # fmt: skip
    return q


@triton.jit
def _attend(
    Q, K, V, POSITIONS, PARTS, LSE, scale, room,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
    SPLITS: tl.constexpr, REACH: tl.constexpr, SIZE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Attention of one row and key head over one split of the keys: PARTS [A, H, SPLITS, W], LSE [A, H, SPLITS]."""
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    n = tl.load(POSITIONS + row) + 1
    group: tl.constexpr = HEADS // KEY_HEADS
    g, d, lane = tl.arange(0, GROUP)[:, None], tl.arange(0, WIDE)[None, :], tl.arange(0, SIZE)
    valid = (g < group) & (d < WIDTH)
    precision: tl.constexpr = "ieee" if EXACT else "tf32"  # pyright: ignore[reportAssignmentType]
    q = tl.load(Q + (row * HEADS + head * group + g) * WIDTH + d, valid, 0.0)
    base = (row * KEY_HEADS + head) * room
    top = tl.full([GROUP, 1], float("-inf"), tl.float32)
    total = tl.zeros([GROUP, 1], tl.float32)
    out = tl.zeros([GROUP, WIDE], tl.float32)
    for first in range(split * REACH, tl.minimum(n, (split + 1) * REACH), SIZE):
        offset = first + lane
        mask = (offset[:, None] < n) & (d < WIDTH)
        k = tl.load(K + (base + offset[:, None]) * WIDTH + d, mask, 0.0)
        s = tl.dot(q, tl.trans(k), input_precision=precision) * scale
        s = tl.where(offset[None, :] < n, s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1)[:, None])
        p = tl.exp(s - higher)
        shrink = tl.exp(top - higher)
        v = tl.load(V + (base + offset[:, None]) * WIDTH + d, mask, 0.0)
        out = out * shrink + tl.dot(p.to(v.dtype), v, input_precision=precision)
        total = total * shrink + tl.sum(p, 1)[:, None]
        top = higher
    has_keys = total > 0
    index = (row * HEADS + head * group + g) * SPLITS + split
    tl.store(PARTS + index * WIDTH + d, out / tl.where(has_keys, total, 1.0), valid)
    lse = tl.where(has_keys, top + tl.log(tl.where(has_keys, total, 1.0)), float("-inf"))
    tl.store(LSE + index, lse, g < group)


@triton.jit
def _combine(PARTS, LSE, OUT, WIDTH: tl.constexpr, WIDE: tl.constexpr, SPLITS: tl.constexpr, MANY: tl.constexpr):
    """Combines the splits of one row and head, weighted by their log-sum-exp: OUT [A, H, W]."""
    offset = tl.program_id(0).to(tl.int64)  # row and head
    s, d = tl.arange(0, MANY)[:, None], tl.arange(0, WIDE)[None, :]
    lse = tl.load(LSE + offset * SPLITS + s, s < SPLITS, float("-inf"))
    weight = tl.exp(lse - tl.max(lse, 0))
    part = tl.load(PARTS + (offset * SPLITS + s) * WIDTH + d, (s < SPLITS) & (d < WIDTH), 0.0)
    out = tl.sum(part * weight, 0)[None, :] / tl.sum(weight, 0)
    tl.store(OUT + offset * WIDTH + d, out.to(OUT.dtype.element_ty), d < WIDTH)


def attend(q_AHW: Tensor, stores: tuple[Tensor, Tensor], positions_A: Tensor, scale: float) -> Tensor:
    """Attention [A, H, W] of each row's queries over its keys up to and including its position."""
    keys, values = stores
    A, heads, width = q_AHW.shape
    key_heads, room = keys.shape[1:3]
    splits, wide = triton.cdiv(room, STRETCH), max(LEAST, triton.next_power_of_2(width))
    parts = torch.empty(A, heads, splits, width, dtype=torch.float32, device=q_AHW.device)
    lse = torch.empty(A, heads, splits, dtype=torch.float32, device=q_AHW.device)
    size = KEYS
    while size > LEAST and 4 * size * wide * q_AHW.element_size() > SHARED:
        size //= 2
    group = max(LEAST, triton.next_power_of_2(heads // key_heads))
    _attend[(A, key_heads, splits)](
        q_AHW, keys, values, positions_A, parts, lse, scale, room, heads, key_heads, group, width, wide, splits,
        STRETCH, size, q_AHW.dtype == torch.float32,
    )  # fmt: skip
    out = torch.empty_like(q_AHW)
    sizes = triton.next_power_of_2(width), splits, triton.next_power_of_2(splits)
    _combine[(A * heads,)](parts, lse, out, width, *sizes)
    return out
