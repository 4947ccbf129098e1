"""A layer's operations between its matrix products on CUDA, in Triton: the functions of `layers.py`, and `gathered`.

Tensors are contiguous, in float32, float16 or bfloat16; everything is computed in float32 and rounded once, when it is
written. Sums over rows are computed per program, then over programs, so the same input gives the same bits. Triton's
interpreter runs the kernels on the CPU (TRITON_INTERPRET=1), which is how they are tested without a GPU.

The number of rows is excluded from specialisation: Triton would compile a kernel again depending on whether it is
divisible by 16, and training steps were seen to wait for that. The number of elements is specialised, so that Triton
knows where wide loads are possible.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# Triton's language has no types that pyright could check

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladder.kernels.triton_decode import attend, enter
from ladder.kernels.triton_draw import draw

__all__ = [
    "attend", "draw", "enter", "gate", "gate_backward_", "gathered", "logps", "logps_backward_", "norm", "norm_again",
    "norm_backward", "rotate_",
]  # fmt: skip

BLOCK = 1024
"""Elements that one program of an elementwise kernel processes."""
TILE = 4096
"""Elements that one program of a norm kernel holds at a time."""
PROGRAMS = 264
"""Programs among which rows are divided where sums over rows are computed: two per multiprocessor of an H100."""
STRETCH = 8192
"""Logits of a row that one program holds at a time."""


def _tile(D: int) -> tuple[int, int]:
    """(width of a row rounded up to a power of 2, rows that a program holds at a time)."""
    wide = triton.next_power_of_2(D)
    return wide, max(1, TILE // wide)


# ------------------------------------------------------------ norms


@triton.jit(do_not_specialize=["rows"])
def _norm(X, DELTA, W, S, Y, R, rows, eps, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.arange(0, WIDE)[None, :]
    mask = (row < rows) & (d < D)
    offset = row.to(tl.int64) * D + d
    s = tl.load(X + offset, mask, 0.0).to(tl.float32)
    if ADD:
        s += tl.load(DELTA + offset, mask, 0.0).to(tl.float32)
        s = s.to(S.dtype.element_ty)
        tl.store(S + offset, s, mask)
        s = s.to(tl.float32)  # rounded, as backward will read it
    r = tl.rsqrt(tl.sum(s * s, 1) / D + eps)
    w = tl.load(W + d, d < D, 0.0).to(tl.float32)
    tl.store(Y + offset, (s * r[:, None] * w).to(Y.dtype.element_ty), mask)
    tl.store(R + row, r[:, None], row < rows)


def norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, into: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    D = x.shape[-1]
    rows = x.numel() // D
    s = x if delta is None else torch.empty_like(x)
    y = torch.empty_like(x) if into is None else into
    r = torch.empty(rows, dtype=torch.float32, device=x.device)
    wide, tile_rows = _tile(D)
    grid = (triton.cdiv(rows, tile_rows),)
    _norm[grid](x, x if delta is None else delta, weight, s, y, r, rows, eps, D, wide, tile_rows, delta is not None)
    return s, y, r


@triton.jit(do_not_specialize=["rows"])
def _norm_again(S, W, R, Y, rows, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.arange(0, WIDE)[None, :]
    mask = (row < rows) & (d < D)
    offset = row.to(tl.int64) * D + d
    y = tl.load(S + offset, mask, 0.0).to(tl.float32) * tl.load(R + row, row < rows, 0.0)
    w = tl.load(W + d, d < D, 0.0).to(tl.float32)
    tl.store(Y + offset, (y * w).to(Y.dtype.element_ty), mask)


def norm_again(s: Tensor, weight: Tensor, r: Tensor, into: Tensor) -> Tensor:
    D = s.shape[-1]
    rows = s.numel() // D
    wide, tile_rows = _tile(D)
    _norm_again[(triton.cdiv(rows, tile_rows),)](s, weight, r, into, rows, D, wide, tile_rows)
    return into


@triton.jit(do_not_specialize=["rows", "each"])
def _norm_backward(
    S, W, R, GRAD, MORE, INTO, DW, rows, each,
    D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Processes rows each * program to each * (program + 1); DW [programs, D]: the weight gradient of each program."""
    program = tl.program_id(0)
    d = tl.arange(0, WIDE)[None, :]
    w = tl.load(W + d, d < D, 0.0).to(tl.float32)
    dw = tl.zeros([ROWS, WIDE], tl.float32)
    end = tl.minimum(rows, (program + 1) * each)
    for first in range(program * each, end, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        mask = (row < end) & (d < D)
        offset = row.to(tl.int64) * D + d
        s = tl.load(S + offset, mask, 0.0).to(tl.float32)
        g = tl.load(GRAD + offset, mask, 0.0).to(tl.float32)
        r = tl.load(R + row, row < end, 0.0)
        if WEIGHTED:
            dw += g * s * r
        g = g * w
        back = tl.sum(s * g, 1)[:, None] / D * r * r * r
        ds = g * r - s * back
        if ADD:
            ds += tl.load(MORE + offset, mask, 0.0).to(tl.float32)
        tl.store(INTO + offset, ds.to(INTO.dtype.element_ty), mask)
    if WEIGHTED:
        tl.store(DW + program * D + d, tl.sum(dw, 0)[None, :], d < D)


def norm_backward(
    s: Tensor, weight: Tensor, r: Tensor, grad: Tensor, more: Tensor | None, into: Tensor, weighted: bool
) -> Tensor | None:
    D = s.shape[-1]
    rows = s.numel() // D
    wide, tile_rows = _tile(D)
    each = triton.cdiv(triton.cdiv(rows, tile_rows), PROGRAMS) * tile_rows
    programs = triton.cdiv(rows, each)
    dw = torch.empty(programs, D, dtype=torch.float32, device=s.device) if weighted else None
    _norm_backward[(programs,)](
        s, weight, r, grad, s if more is None else more, into, r if dw is None else dw, rows, each,
        D, wide, tile_rows, more is not None, weighted,
    )  # fmt: skip
    return None if dw is None else dw.sum(0).to(weight.dtype)


# ------------------------------------------------------------ rotation, gate


@triton.jit
def _rotate(X, COS, SIN, n, sign, HEADS: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """Rotates n pairs of elements (token, head, d), d < WIDTH / 2."""
    HALF: tl.constexpr = WIDTH // 2
    pair = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = pair < n
    d, head = pair % HALF, pair // HALF
    offset, table_offset = head * WIDTH + d, head // HEADS * WIDTH + d
    a, b = tl.load(X + offset, mask, 0.0).to(tl.float32), tl.load(X + offset + HALF, mask, 0.0).to(tl.float32)
    cos = tl.load(COS + table_offset, mask, 0.0).to(tl.float32)
    sin = tl.load(SIN + table_offset, mask, 0.0).to(tl.float32) * sign
    tl.store(X + offset, (a * cos - b * sin).to(X.dtype.element_ty), mask)
    tl.store(X + offset + HALF, (b * cos + a * sin).to(X.dtype.element_ty), mask)


def rotate_(x_THW: Tensor, cos_TW: Tensor, sin_TW: Tensor, sign: float = 1.0) -> Tensor:
    heads, width = x_THW.shape[1:]
    n = x_THW.numel() // 2
    _rotate[(triton.cdiv(n, BLOCK),)](x_THW, cos_TW, sin_TW, n, sign, heads, width, BLOCK)
    return x_THW


@triton.jit
def _gate(G, U, Y, n, SIZE: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = offset < n
    g, u = tl.load(G + offset, mask, 0.0).to(tl.float32), tl.load(U + offset, mask, 0.0).to(tl.float32)
    tl.store(Y + offset, (g * tl.sigmoid(g) * u).to(Y.dtype.element_ty), mask)


def gate(g: Tensor, u: Tensor, into: Tensor | None = None) -> Tensor:
    y = torch.empty_like(g) if into is None else into
    n = g.numel()
    _gate[(triton.cdiv(n, BLOCK),)](g, u, y, n, BLOCK)
    return y


@triton.jit
def _gate_backward(G, U, GRAD, n, SIZE: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = offset < n
    g, u = tl.load(G + offset, mask, 0.0).to(tl.float32), tl.load(U + offset, mask, 0.0).to(tl.float32)
    y = tl.load(GRAD + offset, mask, 0.0).to(tl.float32)
    s = tl.sigmoid(g)
    silu = g * s
    tl.store(GRAD + offset, (silu * u).to(GRAD.dtype.element_ty), mask)
    tl.store(U + offset, (y * silu).to(U.dtype.element_ty), mask)
    tl.store(G + offset, (y * u * s * (1.0 + g * (1.0 - s))).to(G.dtype.element_ty), mask)


def gate_backward_(g: Tensor, u: Tensor, grad: Tensor) -> None:
    n = g.numel()
    _gate_backward[(triton.cdiv(n, BLOCK),)](g, u, grad, n, BLOCK)


# ------------------------------------------------------------ the vocabulary


@triton.jit
def _logps(Z, TARGETS, LSE, LOGPS, ENTS, V, scale, ENTROPY: tl.constexpr, SIZE: tl.constexpr):
    """One row: running maximum `top` of x = logit * scale, sum of e = exp(x - top), and sum of e (x - top); both sums
    are rescaled when `top` rises."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, SIZE)
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    weighted = tl.zeros([], tl.float32)
    for first in range(0, V, SIZE):
        v = first + lane
        x = tl.load(Z + row * V + v, v < V, float("-inf")).to(tl.float32) * scale
        higher = tl.maximum(top, tl.max(x, 0))
        e = tl.exp(x - higher)
        shrink = tl.exp(top - higher)
        if ENTROPY:
            shift = tl.where(total > 0, (top - higher) * total, 0.0)
            weighted = (weighted + shift) * shrink + tl.sum(tl.where(v < V, e * (x - higher), 0.0), 0)
        total = total * shrink + tl.sum(e, 0)
        top = higher
    lse = top + tl.log(total)
    x = tl.load(Z + row * V + tl.load(TARGETS + row)).to(tl.float32) * scale
    tl.store(LSE + row, lse)
    tl.store(LOGPS + row, x - lse)
    if ENTROPY:
        tl.store(ENTS + row, tl.log(total) - weighted / total)


def logps(z_NV: Tensor, targets_N: Tensor, scale: float, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    N, V = z_NV.shape
    lse, target_logps, ents = torch.empty(3, N, dtype=torch.float32, device=z_NV.device)
    if N:
        _logps[(N,)](z_NV, targets_N, lse, target_logps, ents, V, scale, entropy, STRETCH, num_warps=8)
    return lse, target_logps, ents if entropy else None


@triton.jit
def _logps_backward(Z, TARGETS, LSE, G, GE, ENTS, V, scale, ENTROPY: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    x = tl.load(Z + row * V + v, v < V, 0.0).to(tl.float32) * scale - tl.load(LSE + row)
    g = tl.load(G + row)
    weight = g
    if ENTROPY:
        weight += tl.load(GE + row) * (x + tl.load(ENTS + row))
    dz = tl.where(v == tl.load(TARGETS + row), g, 0.0) - tl.exp(x) * weight
    tl.store(Z + row * V + v, (dz * scale).to(Z.dtype.element_ty), v < V)


def logps_backward_(
    z_NV: Tensor,
    targets_N: Tensor,
    scale: float,
    lse_N: Tensor,
    g_N: Tensor,
    ge_N: Tensor | None,
    ents_N: Tensor | None,
) -> Tensor:
    N, V = z_NV.shape
    with_entropy = ge_N is not None and ents_N is not None
    size = STRETCH // 2
    if N:
        _logps_backward[(N, triton.cdiv(V, size))](
            z_NV, targets_N, lse_N, g_N, ge_N if with_entropy else g_N, ents_N if with_entropy else g_N, V, scale,
            with_entropy, size,
        )  # fmt: skip
    return z_NV


# ------------------------------------------------------------ gradients of keys that several segments attend to


@triton.jit
def _gathered(X, ORDER, OFFSETS, Y, D: tl.constexpr, WIDE: tl.constexpr):
    """Y[t] = sum of X[ORDER[i]] for OFFSETS[t] <= i < OFFSETS[t + 1]."""
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDE)
    total = tl.zeros([WIDE], tl.float32)
    for i in range(tl.load(OFFSETS + t), tl.load(OFFSETS + t + 1)):
        total += tl.load(X + tl.load(ORDER + i) * D + d, d < D, 0.0).to(tl.float32)
    tl.store(Y + t * D + d, total.to(Y.dtype.element_ty), d < D)


def gathered(x_KD: Tensor, order_K: Tensor, offsets_T1: Tensor) -> Tensor:
    """x [K, ...] -> [T, ...]: for each token t the sum of x[order[i]] over offsets[t] <= i < offsets[t + 1]."""
    T, D = len(offsets_T1) - 1, x_KD[0].numel()
    y = x_KD.new_empty(T, *x_KD.shape[1:])
    arguments: Any = (x_KD, order_K, offsets_T1, y, D, triton.next_power_of_2(D))
    _gathered[(T,)](*arguments)
    return y
