"""The one log-probability function: from hidden states at trained positions to log-probabilities, in chunks.

    z = head(h) / temperature,  logp_t = z_t - logsumexp(z),  entropy = logsumexp(z) - sum softmax(z) z

The logits of a whole batch never exist: [chunk, V] at a time. Backward needs softmax(z) again; it is kept when
all of it is small (`KEEP` numbers: a tiny vocabulary) and recomputed chunk by chunk otherwise. Both outputs are
differentiable. Everything is computed in float32 (float64 for float64 models), whatever the model's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ladder.head import Head

CHUNK = 1 << 24
"""Logits computed at a time (numbers, not bytes)."""
KEEP = 1 << 23
"""Probabilities kept for backward when there are at most this many."""


def token_logps(
    hidden_ND: Tensor, head: Head, targets_N: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target and, when asked for, the entropy of its distribution: ([N], [N] | None).

    hidden_ND: the hidden states that predict. targets_N: int64 token ids. temperature > 0: of the distribution
    that was sampled from. Raises ValueError on shapes that disagree.
    """
    if hidden_ND.ndim != 2 or targets_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"hidden [N, D] {tuple(hidden_ND.shape)} and targets [N] {tuple(targets_N.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    scale = head.scale / temperature
    cap = head.softcap / temperature
    logps, ents = _TokenLogps.apply(  # pyright: ignore[reportGeneralTypeIssues]
        hidden_ND, head.weight, head.bias, targets_N, scale, cap, entropy
    )
    return logps, ents if entropy else None


def _logits(h: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float) -> Tensor:
    """Scaled, capped logits in float32 (or float64): scale multiplies, then cap * tanh(z / cap) when cap > 0."""
    z = torch.nn.functional.linear(h, weight, bias)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    if scale != 1.0:
        z = z * scale
    if cap:
        z = cap * torch.tanh(z / cap)
    return z


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        cap: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        N, V = hidden.shape[0], weight.shape[0]
        keep = N * V <= KEEP and any(ctx.needs_input_grad)
        rows = max(1, CHUNK // V)
        logps, ents, kept = [], [], []
        for at in range(0, N, rows):
            z = _logits(hidden[at : at + rows], weight, bias, scale, cap)
            lse = z.logsumexp(-1, keepdim=True)
            logp = z.sub_(lse)  # log-softmax in place
            logps.append(logp.gather(1, targets[at : at + rows, None])[:, 0])
            if entropy:
                ents.append(-(logp.exp() * logp).sum(-1))
            if keep:
                kept.append(logp)
        out = torch.cat(logps) if logps else hidden.new_zeros(0)
        ent = torch.cat(ents) if ents else out.new_zeros(0)
        stored = torch.cat(kept) if kept else None
        ctx.save_for_backward(hidden, weight, bias, targets, ent, stored)
        ctx.scale, ctx.cap, ctx.entropy, ctx.rows = scale, cap, entropy, rows
        return out, ent

    @staticmethod
    def backward(ctx: Any, g_logps: Tensor, g_ents: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, targets, ent, stored = ctx.saved_tensors
        need_h, need_w, need_b = ctx.needs_input_grad[:3]
        # a gradient that is zero everywhere (entropy only logged) costs nothing
        with_ent = ctx.entropy and bool(g_ents.any())
        g_hidden = torch.empty_like(hidden) if need_h else None
        g_weight = torch.zeros_like(weight) if need_w else None
        g_bias = torch.zeros_like(bias) if need_b and bias is not None else None
        for at in range(0, hidden.shape[0], ctx.rows):
            part = slice(at, at + ctx.rows)
            h, t = hidden[part], targets[part, None]
            if stored is None:
                z = _logits(h, weight, bias, ctx.scale, ctx.cap)
                logp = z.sub_(z.logsumexp(-1, keepdim=True))
            else:
                logp = stored[part]
            dz = logp.exp()
            if with_ent:
                g = g_ents[part, None]
                # d entropy / dz = -p (logp + entropy); d logp_t / dz = onehot - p
                weight_of_p = g * (logp + ent[part, None]) + g_logps[part, None]
                dz = dz.mul_(weight_of_p).neg_()
            else:
                dz = dz.mul_(-g_logps[part, None])
            dz.scatter_add_(1, t, g_logps[part, None])
            if ctx.cap:
                raw = _logits(h, weight, bias, ctx.scale, 0.0)
                dz.mul_(1 - torch.tanh(raw / ctx.cap).square())
            if ctx.scale != 1.0:
                dz.mul_(ctx.scale)
            dz = dz.to(weight.dtype)
            if g_hidden is not None:
                torch.mm(dz, weight, out=g_hidden[part])
            if g_weight is not None:
                g_weight.addmm_(dz.t(), h)
            if g_bias is not None:
                g_bias += dz.sum(0)
        return g_hidden, g_weight, g_bias, None, None, None, None
