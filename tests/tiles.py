"""What `kernels/tiled.py`, `tiled_decode.py` and `tiled_draw.py` compute, in torch's operators: their oracle, and where
there is no GPU what stands for them, on the processor and in any type.

Everything is computed in float32 at least and rounded where a kernel writes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ladder.attention import flash
from ladder.kernels import dispatch


def exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, into: Tensor | None) -> tuple[Tensor, ...]:
    s = x if delta is None else (exact(x) + exact(delta)).to(x.dtype)
    r = (exact(s).square().mean(-1) + eps).rsqrt().flatten()
    y = norm_again(s, weight, r, torch.empty_like(s))
    return s, y if into is None else into.copy_(y), r


def norm_again(s: Tensor, weight: Tensor, r: Tensor, into: Tensor) -> Tensor:
    return into.copy_(exact(s) * r.view(*s.shape[:-1], 1) * exact(weight))


def norm_backward(
    s: Tensor, weight: Tensor, r: Tensor, grad: Tensor, more: Tensor | None, into: Tensor, weighted: bool
) -> Tensor | None:
    g, x, r = exact(grad), exact(s), r.view(*s.shape[:-1], 1)
    dw = (g * x * r).flatten(0, -2).sum(0).to(weight.dtype) if weighted else None
    g = g * exact(weight)
    ds = g * r - x * (x * g).mean(-1, keepdim=True) * r**3
    into.copy_(ds if more is None else ds + exact(more))
    return dw


def rotate_(x: Tensor, cos: Tensor, sin: Tensor, sign: float = 1.0) -> Tensor:
    a, b = exact(x).chunk(2, -1)
    c, s = exact(cos)[:, None], exact(sin)[:, None] * sign
    return x.copy_(exact(x) * c + torch.cat([-b, a], -1) * s)


def gate(g: Tensor, u: Tensor, into: Tensor | None = None) -> Tensor:
    y = torch.nn.functional.silu(exact(g)) * exact(u)
    return (torch.empty_like(g) if into is None else into).copy_(y)


def gate_backward_(g: Tensor, u: Tensor, grad: Tensor) -> None:
    a, b, y = exact(g).clone(), exact(u).clone(), exact(grad).clone()
    s = a.sigmoid()
    grad.copy_(a * s * b)
    u.copy_(y * a * s)
    g.copy_(y * b * s * (1 + a * (1 - s)))


def logps(z: Tensor, targets: Tensor, scale: float, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    x = exact(z) * scale
    lse = x.logsumexp(-1)
    logp = x - lse[:, None]
    found = logp.gather(1, targets[:, None])[:, 0]
    return lse, found, -(logp.exp() * logp).sum(-1) if entropy else None


def logps_backward_(
    z: Tensor, targets: Tensor, scale: float, lse: Tensor, g: Tensor, ge: Tensor | None, ents: Tensor | None
) -> Tensor:
    logp = exact(z) * scale - lse[:, None]
    weight = g[:, None] if ge is None or ents is None else g[:, None] + ge[:, None] * (logp + ents[:, None])
    dz = (-logp.exp() * weight).scatter_add_(1, targets[:, None], g[:, None])
    return z.copy_(dz * scale)


def gathered(x: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    token = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=x.device), offsets.diff())
    out = exact(x).new_zeros(len(offsets) - 1, *x.shape[1:])
    return out.index_add_(0, token, exact(x[order])).to(x.dtype)


def enter(
    qkv: Tensor, positions: Tensor, tables: Any, norms: Any, eps: float, stores: tuple[Tensor, Tensor]
) -> Tensor:
    keys, values = stores
    heads, width = keys.shape[1], keys.shape[3]
    x = exact(qkv).view(len(qkv), -1, width)
    q, k, v = x[:, : -2 * heads], x[:, -2 * heads : -heads], x[:, -heads:]
    cos, sin = (exact(t).index_select(0, positions)[:, None] for t in tables)
    out = []
    for part, weight in zip((q, k), norms or (None, None), strict=True):
        if weight is not None:
            part = part * (part.square().mean(-1, keepdim=True) + eps).rsqrt() * exact(weight)
        a, b = part.chunk(2, -1)
        out.append(part * cos + torch.cat([b, a], -1) * sin)
    at = torch.arange(len(qkv), device=qkv.device), slice(None), positions
    keys[at], values[at] = out[1].to(keys.dtype), v.to(values.dtype)
    return out[0].to(qkv.dtype)


def attend(q: Tensor, stores: tuple[Tensor, Tensor], positions: Tensor, scale: float) -> Tensor:
    keys, values = (exact(s[: len(q)]) for s in stores)
    hidden = torch.arange(keys.shape[2], device=q.device) > positions[:, None]
    scores = exact(q).unflatten(1, (keys.shape[1], -1)) @ keys.transpose(-1, -2) * scale
    scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
    return (scores.softmax(-1) @ values).flatten(1, 2).to(q.dtype)


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    p = (logits.double() / temperature).softmax(-1)
    ends = p.cumsum(-1)
    last = torch.where(p > 0, torch.arange(p.shape[1], device=p.device), 0).amax(-1)
    tokens = (ends <= uniform.to(p.device)[:, None] * ends[:, -1:]).sum(-1).minimum(last)
    return tokens.cpu(), p.gather(1, tokens[:, None])[:, 0].log().float().cpu()


# ------------------------------------------------------------ flash attention, and all of it in place


def _attention(q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Sequence by sequence; the last query of each sees all of its keys."""
    out = []
    for (a, b), (c, d) in zip(pairwise(queries.tolist()), pairwise(keys.tolist()), strict=True):
        seen = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        some = (x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
        out.append(
            torch.nn.functional.scaled_dot_product_attention(*some, attn_mask=seen, scale=scale, enable_gqa=True)
        )
    return torch.cat(out, 1).transpose(0, 1).contiguous()


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, longest_query: int, longest_key: int,
    dropout: float, causal: bool, debug: bool, *, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    assert causal and not dropout and not debug and queries.dtype == keys.dtype == torch.int32
    assert longest_query == int(queries.diff().max()) and longest_key == int(keys.diff().max())
    none = q.new_empty(0)
    return _attention(q, k, v, queries, keys, scale), none, none, none, none


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, queries: Tensor, keys: Tensor,
    longest_query: int, longest_key: int, dropout: float, causal: bool, *noise: Tensor, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    with torch.enable_grad():
        some = [x.detach().requires_grad_() for x in (q, k, v)]
        again = _attention(*some, queries, keys, scale)
        return torch.autograd.grad(again, some, grad)


def in_place(monkeypatch: Any) -> None:
    """What asks for kernels gets these, on any device, as it would get Triton's on CUDA."""
    import tiles

    monkeypatch.setattr(dispatch, "tiled", lambda: tiles)
    monkeypatch.setattr(dispatch, "kernels", lambda x: tiles)
    monkeypatch.setattr(flash, "FORWARD", flash_forward)
    monkeypatch.setattr(flash, "BACKWARD", flash_backward)
