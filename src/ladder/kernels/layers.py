"""What a layer does between its matrix products (`layers.c`), on contiguous float32 tensors on the CPU.

Each is one pass over memory where torch's operators take three to six. The gradients are functions of their own: who
calls them (`engine/fused.py`, `ops.py`) says what is kept for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ladder.kernels.library import Address, Float, Int, address, declared, library, readable

ARGUMENTS = {
    "norm_forward": [Address, Address, Address, Int, Int, Float, Address, Address, Address, Int],
    "norm_again": [Address, Address, Address, Int, Int, Address, Int],
    "norm_backward": [Address, Address, Address, Address, Address, Int, Int, Address, Address, Int],
    "rotate": [Address, Address, Address, Int, Int, Int, Float, Int],
    "gate_forward": [Address, Address, Int, Address, Int],
    "gate_backward": [Address, Address, Address, Int, Int],
    "logps_forward": [Address, Address, Int, Int, Float, Address, Address, Address, Int],
    "logps_backward": [Address, Address, Int, Int, Float, Address, Address, Address, Address, Int],
}


def kernels() -> Any:
    """The library, or None (`library.why` says why)."""
    return declared(library("layers"), ARGUMENTS)


def usable(x: Tensor) -> bool:
    """Whether the kernels can work on tensors of this one's kind."""
    return readable(x) and kernels() is not None


def _threads() -> int:
    return torch.get_num_threads()


# ------------------------------------------------------------ norms


def norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, into: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(s = x + delta, its RMSNorm, what the gradient needs of it [rows]); [..., D] each, weight [D].

    Without delta s is x itself. into: where the norm is written, if not into a new tensor; it may be delta."""
    D = x.shape[-1]
    rows = x.numel() // D
    s = x if delta is None else torch.empty_like(x)
    y, r = torch.empty_like(x) if into is None else into, x.new_empty(rows)
    kernels().norm_forward(
        address(x), address(delta), address(weight), rows, D, eps, address(None if delta is None else s), address(y),
        address(r), _threads(),
    )  # fmt: skip
    return s, y, r


def norm_again(s: Tensor, weight: Tensor, r: Tensor, into: Tensor) -> Tensor:
    """The norm of s once more, from what is kept of it."""
    D = s.shape[-1]
    kernels().norm_again(address(s), address(weight), address(r), s.numel() // D, D, address(into), _threads())
    return into


def norm_backward(
    s: Tensor, weight: Tensor, r: Tensor, grad: Tensor, more: Tensor | None, into: Tensor, weighted: bool
) -> Tensor | None:
    """Writes the gradient by s, plus `more`, into `into` (which may be either); returns that by the weight if asked."""
    D, threads = s.shape[-1], _threads()
    dw = s.new_zeros(threads, D) if weighted else None
    kernels().norm_backward(
        address(s), address(weight), address(r), address(grad), address(more), s.numel() // D, D, address(into),
        address(dw), threads,
    )  # fmt: skip
    return dw if dw is None else dw[0] if threads == 1 else dw.sum(0)


# ------------------------------------------------------------ rotation, gate


def rotate_(x_THW: Tensor, cos_TW: Tensor, sin_TW: Tensor, sign: float = 1.0) -> Tensor:
    """Rotary positions, in place: x cos + (its halves exchanged, the first negated) sin; sign -1 is the gradient. The
    halves of cos and sin are equal, as transformers makes them."""
    T, heads, W = x_THW.shape
    kernels().rotate(address(x_THW), address(cos_TW), address(sin_TW), T, heads, W, sign, _threads())
    return x_THW


def gate(g: Tensor, u: Tensor, into: Tensor | None = None) -> Tensor:
    """silu(g) * u."""
    y = torch.empty_like(g) if into is None else into
    kernels().gate_forward(address(g), address(u), g.numel(), address(y), _threads())
    return y


def gate_backward_(g: Tensor, u: Tensor, grad: Tensor) -> None:
    """In place: g and u become the gradients by them, and the gradient becomes silu(g) * u."""
    kernels().gate_backward(address(g), address(u), address(grad), g.numel(), _threads())


# ------------------------------------------------------------ the vocabulary


def logps(z_NV: Tensor, targets_N: Tensor, scale: float, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(log sum exp, log-probabilities of the targets, entropies) of logits z times scale, [N] each."""
    N, V = z_NV.shape
    lse, found = z_NV.new_empty(N), z_NV.new_empty(N)
    ents = z_NV.new_empty(N) if entropy else None
    kernels().logps_forward(
        address(z_NV), address(targets_N), N, V, scale, address(lse), address(found), address(ents), _threads()
    )
    return lse, found, ents


def logps_backward_(
    z_NV: Tensor,
    targets_N: Tensor,
    scale: float,
    lse_N: Tensor,
    g_N: Tensor,
    ge_N: Tensor | None,
    ents_N: Tensor | None,
) -> Tensor:
    """Turns logits into the gradient by them, in place, given those by log-probabilities and (or None) entropies."""
    N, V = z_NV.shape
    kernels().logps_backward(
        address(z_NV), address(targets_N), N, V, scale, address(lse_N), address(g_N), address(ge_N), address(ents_N),
        _threads(),
    )  # fmt: skip
    return z_NV
