"""The operations of a layer between its matrix products (`layers.c`), for contiguous float32 tensors on the CPU.

Each takes one pass over memory where torch's operators take three to six. The gradients are separate functions; the
callers (`models/fused_llama.py`, `models/logprobs.py`) store what backward needs.
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
    """The compiled library, or None (`library.why` gives the reason)."""
    return declared(library("layers"), ARGUMENTS)


def usable(x: Tensor) -> bool:
    """Whether the kernels support tensors of this device and dtype."""
    return readable(x) and kernels() is not None


def _threads() -> int:
    return torch.get_num_threads()


# ------------------------------------------------------------ norms


def norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, into: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(s = x + delta, RMSNorm of s, r = 1 / sqrt(mean(s^2) + eps) [rows], for backward); s and the norm are [..., D].

    Without delta, s is x itself. weight [D]. into: the norm is written here instead of to a new tensor; may be delta.
    """
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
    """Recomputes the norm of s from s and r, and writes it to `into`."""
    D = s.shape[-1]
    kernels().norm_again(address(s), address(weight), address(r), s.numel() // D, D, address(into), _threads())
    return into


def norm_backward(
    s: Tensor, weight: Tensor, r: Tensor, grad: Tensor, more: Tensor | None, into: Tensor, weighted: bool
) -> Tensor | None:
    """Writes the gradient with respect to s, plus `more`, to `into`, which may be `grad` or `more`.

    Returns the gradient with respect to the weight, or None if not `weighted`.
    """
    D, threads = s.shape[-1], _threads()
    dw = s.new_zeros(threads, D) if weighted else None
    kernels().norm_backward(
        address(s), address(weight), address(r), address(grad), address(more), s.numel() // D, D, address(into),
        address(dw), threads,
    )  # fmt: skip
    return dw if dw is None else dw[0] if threads == 1 else dw.sum(0)


# ------------------------------------------------------------ rotation, gate


def rotate_(x_THW: Tensor, cos_TW: Tensor, sin_TW: Tensor, sign: float = 1.0) -> Tensor:
    """Rotary position embedding, in place: x cos + (the halves of x exchanged, the first negated) sin. sign -1 rotates
    back, which is the gradient. Both halves of cos and of sin are equal, as in transformers."""
    T, heads, W = x_THW.shape
    kernels().rotate(address(x_THW), address(cos_TW), address(sin_TW), T, heads, W, sign, _threads())
    return x_THW


def gate(g: Tensor, u: Tensor, into: Tensor | None = None) -> Tensor:
    """silu(g) * u, written to `into` if given."""
    y = torch.empty_like(g) if into is None else into
    kernels().gate_forward(address(g), address(u), g.numel(), address(y), _threads())
    return y


def gate_backward_(g: Tensor, u: Tensor, grad: Tensor) -> None:
    """In place: g and u are overwritten by their gradients, and `grad` by silu(g) * u."""
    kernels().gate_backward(address(g), address(u), address(grad), g.numel(), _threads())


# ------------------------------------------------------------ the vocabulary


def logps(z_NV: Tensor, targets_N: Tensor, scale: float, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(log-sum-exp, log-probabilities of the targets, entropies) of the logits z * scale, [N] each."""
    N, V = z_NV.shape
    lse, target_logps = z_NV.new_empty(N), z_NV.new_empty(N)
    ents = z_NV.new_empty(N) if entropy else None
    kernels().logps_forward(
        address(z_NV), address(targets_N), N, V, scale, address(lse), address(target_logps), address(ents), _threads()
    )
    return lse, target_logps, ents


def logps_backward_(
    z_NV: Tensor,
    targets_N: Tensor,
    scale: float,
    lse_N: Tensor,
    g_N: Tensor,
    ge_N: Tensor | None,
    ents_N: Tensor | None,
) -> Tensor:
    """Overwrites the logits z with their gradient, given the gradients with respect to the log-probabilities (g) and to
    the entropies (ge, or None)."""
    N, V = z_NV.shape
    kernels().logps_backward(
        address(z_NV), address(targets_N), N, V, scale, address(lse_N), address(g_N), address(ge_N), address(ents_N),
        _threads(),
    )  # fmt: skip
    return z_NV
