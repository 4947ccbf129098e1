"""The one log-probability function: from hidden states at trained positions to log-probabilities, in chunks.

    z = head(h) / temperature,  logp_t = z_t - logsumexp(z),  entropy = logsumexp(z) - sum softmax(z) z

Backward needs the logits again. They are stored when there are at most `KEEP` of them; otherwise they are computed
[chunk, V] at a time and recomputed chunk by chunk in backward, so the logits of a whole batch never exist. When the
head is frozen and no entropy is requested, the forward pass already computes the gradient with respect to the hidden
state up to the factor d loss / d logp, W_t - sum_v p_v W_v, and backward only multiplies. Both outputs are
differentiable. Everything is computed in float32 (float64 for float64 models), whatever the model's dtype. Kernels
(`kernels/dispatch.py`) read the head's raw logits and overwrite them with their gradient; soft-capped logits, and other
dtypes on the CPU, use torch's operators, which are the kernels' oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ladder.kernels import dispatch
from ladder.models.gradients import Gradients, add, add_product, given, taken
from ladder.models.head import Head

CHUNK = 1 << 24
"""Logits computed at a time (numbers, not bytes)."""
KEEP = 1 << 26
"""Logits stored for backward when there are at most this many; recomputing them is a fourth product with the head."""
ON_CUDA = 16
"""Multiplier of CHUNK and KEEP on CUDA, where matrix products need thousands of rows to be fast."""
SHARE = 16
"""The multiplier is reduced so that stored logits take at most 1 / SHARE of the GPU's memory."""


def token_logps(
    hidden_ND: Tensor,
    head: Head,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target and, if requested, the entropy of its distribution: ([N], [N] | None).

    hidden_ND: the hidden states that predict. targets_N: int64 token ids. temperature > 0: the sampling temperature.
    in_place: accumulate the head's gradients into `.grad` (see `gradients.py`). Raises ValueError on shapes that
    disagree or a temperature that is not positive.
    """
    if hidden_ND.ndim != 2 or targets_N.shape != hidden_ND.shape[:1]:
        shapes = f"got {tuple(hidden_ND.shape)} and {tuple(targets_N.shape)}"
        raise ValueError(f"hidden must be [N, D] and targets [N], {shapes}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    scale = head.scale / temperature
    cap = head.softcap / temperature
    logps, ents = _TokenLogps.apply(  # pyright: ignore[reportGeneralTypeIssues]
        hidden_ND, head.weight, head.bias, targets_N, scale, cap, entropy, torch.is_grad_enabled(), in_place
    )
    return logps, ents if entropy else None


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The head with the temperature applied: z = cap(scale (h W' + b)), cap(z) = cap * tanh(z / cap) when cap > 0."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float

    @property
    def kernels(self) -> Any:
        """The module of kernels for this head, or None where torch's operators are used."""
        return None if self.cap else dispatch.kernels(self.weight)

    def raw(self, h: Tensor) -> Tensor:
        """Logits before scale and cap; in float32 (or float64) for torch's operators."""
        z = torch.nn.functional.linear(h, self.weight, self.bias)
        return z if self.kernels else z.to(torch.promote_types(z.dtype, torch.float32))

    def finish_(self, z: Tensor) -> Tensor:
        """Scales and caps raw logits, overwriting them."""
        if self.scale != 1.0:
            z = z.mul_(self.scale)
        return z.div_(self.cap).tanh_().mul_(self.cap) if self.cap else z

    def read(self, z: Tensor, t: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """(log-sum-exp, log-probabilities of the targets t, entropies) of raw logits, which are not changed."""
        if kernels := self.kernels:
            return kernels.logps(z, t, self.scale, entropy)
        z = self.finish_(z.clone())
        lse = z.logsumexp(-1)
        logp = z.sub_(lse[:, None])
        target_logps = logp.gather(1, t[:, None])[:, 0]
        return lse, target_logps, -(logp.exp() * logp).sum(-1) if entropy else None

    def gradient_(self, z: Tensor, t: Tensor, lse: Tensor, g: Tensor, ge: Tensor | None, ent: Tensor | None) -> Tensor:
        """The gradient with respect to raw logits, overwriting them, given those with respect to log-probabilities (g)
        and entropies (ge): d logp_t / dz = onehot - p, d entropy / dz = -p (logp + entropy)."""
        if kernels := self.kernels:
            return kernels.logps_backward_(z, t, self.scale, lse, g, ge, ent)
        slope = 1 - torch.tanh(z * (self.scale / self.cap)).square() if self.cap else None
        logp = self.finish_(z).sub_(lse[:, None])
        weight_of_p = g[:, None] if ge is None or ent is None else ge[:, None] * (logp + ent[:, None]) + g[:, None]
        dz = logp.exp().mul_(weight_of_p).neg_()
        dz.scatter_add_(1, t[:, None], g[:, None])
        if slope is not None:
            dz.mul_(slope)
        return dz.mul_(self.scale) if self.scale != 1.0 else dz


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
        differentiable: bool,
        in_place: bool,
    ) -> tuple[Tensor, Tensor]:
        N, V = hidden.shape[0], weight.shape[0]
        vocabulary = _Vocabulary(weight, bias, scale, cap)
        need_h, need_w, need_b = ctx.needs_input_grad[:3]
        # with a frozen head, forward computes the gradient of backward up to a factor
        gradient_in_forward = differentiable and need_h and not need_w and not need_b and not entropy
        multiplier = _device_multiplier(weight)
        keep = KEEP * multiplier >= N * V and differentiable and not gradient_in_forward
        rows = N if keep else int(CHUNK * multiplier) // V
        out = hidden.new_empty(N, dtype=torch.promote_types(hidden.dtype, torch.float32))
        lse, ent = torch.empty_like(out), torch.empty_like(out) if entropy else None
        z: Tensor | None = None
        slope = torch.empty_like(hidden) if gradient_in_forward else None
        for part in _row_slices(N, rows):
            z = None  # frees the last chunk before the next is computed
            z = vocabulary.raw(hidden[part])
            lse[part], out[part], e = vocabulary.read(z, targets[part], entropy)
            if ent is not None and e is not None:
                ent[part] = e
            if slope is not None:
                dz = vocabulary.gradient_(z, targets[part], lse[part], torch.ones_like(lse[part]), None, None)
                torch.mm(dz.to(weight.dtype), weight, out=slope[part])
        ctx.save_for_backward(hidden, weight, bias, targets, lse, ent, slope)
        ctx.logits = z if keep else None  # the first backward overwrites them with the gradient; a second recomputes
        ctx.scale, ctx.cap, ctx.rows, ctx.in_place = scale, cap, rows, in_place
        return out, out.new_zeros(0) if ent is None else ent.clone()

    @staticmethod
    def backward(ctx: Any, g_logps: Tensor, g_ents: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, targets, lse, ent, slope = ctx.saved_tensors
        if slope is not None:
            return (slope * g_logps[:, None]).to(slope.dtype), *[None] * 8
        vocabulary = _Vocabulary(weight, bias, ctx.scale, ctx.cap)
        stored_logits, ctx.logits = ctx.logits, None
        need_h, need_w, need_b = ctx.needs_input_grad[:3]
        g_logps = g_logps.contiguous()
        # skips the entropy's part when its gradient is zero everywhere (entropy is only logged)
        entropy_grads = g_ents.contiguous() if ent is not None and bool(g_ents.any()) else None
        g_hidden = torch.empty_like(hidden) if need_h else None
        grads: Gradients = {p: None for p, needed in ((weight, need_w), (bias, need_b)) if needed}
        taken(grads, ctx.in_place)
        for part in _row_slices(len(hidden), ctx.rows):
            h = hidden[part]
            z: Tensor = vocabulary.raw(h) if stored_logits is None else stored_logits  # pyright: ignore[reportAssignmentType]
            entropy_part = (None, None) if entropy_grads is None or ent is None else (entropy_grads[part], ent[part])
            dz = vocabulary.gradient_(z, targets[part], lse[part], g_logps[part], *entropy_part).to(weight.dtype)
            if g_hidden is not None:
                torch.mm(dz, weight, out=g_hidden[part])
            if need_w:
                add_product(grads, weight, dz.t(), h)
            if need_b:
                add(grads, bias, dz.sum(0))
            del z, dz
        given(grads, ctx.in_place)
        return g_hidden, grads.get(weight), grads.get(bias), *[None] * 6


def _device_multiplier(weight: Tensor) -> float:
    """Multiplier of CHUNK and KEEP for the weight's device."""
    if weight.device.type != "cuda":
        return 1
    memory = torch.cuda.get_device_properties(weight.device).total_memory
    return min(ON_CUDA, memory / SHARE / (KEEP * weight.element_size()))


def _row_slices(n: int, rows: int) -> list[slice]:
    """n rows as slices of `rows` rows each; one empty slice for n = 0."""
    return [slice(start, start + max(1, rows)) for start in range(0, max(1, n), max(1, rows))]
