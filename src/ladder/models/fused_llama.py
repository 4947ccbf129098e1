"""The decoder of the Llama layout (`llama_layout.py`) over a packed row, with forward and backward written by hand.

    h = norm(x),  x = x + O attend(rope(Q h), rope(K h), V h)
    h = norm(x),  x = x + D (silu(G h) * U h)

It computes the same as transformers' modules, on the same parameters, as a single autograd function. The operations
between two matrix products take one pass over memory each (`kernels/dispatch.py`). Attention runs on the packed row
(`kernels/attend.py`; on CUDA `attention/flash.py`). Norms and gates are recomputed in backward instead of stored. After
the attention of the last layer, only the rows whose hidden states are requested are computed further.

Float32 on the CPU, float16 and bfloat16 on CUDA. Left out, and computed by transformers' modules, which are the oracle:
other families and dtypes, variants of LoRA, activation checkpointing, and machines without a compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ladder.attention import flash
from ladder.attention.packed import PackedPlan
from ladder.kernels import attend, dispatch, layers
from ladder.kernels.attend import Families
from ladder.kernels.library import readable, why
from ladder.models.fused_linear import Linear
from ladder.models.gradients import Gradients, add, given, taken
from ladder.models.llama_layout import known


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight."""

    weight: Tensor
    eps: float
    by: Any  # the module of kernels for this weight

    @classmethod
    def of(cls, module: Any) -> Norm:
        return cls(module.weight, module.variance_epsilon, dispatch.must(module.weight))

    def __call__(self, x: Tensor, delta: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(s = x + delta, norm of s, r = 1 / sqrt(mean(s^2) + eps) for backward); the norm overwrites delta."""
        return self.by.norm(x, delta, self.weight, self.eps, delta)

    def again(self, s: Tensor, r: Tensor) -> Tensor:
        """Recomputes the norm of s."""
        return self.by.norm_again(s, self.weight, r, torch.empty_like(s))

    def backward(
        self, s: Tensor, r: Tensor, grad: Tensor, more: Tensor | None, into: Tensor, grads: Gradients
    ) -> Tensor:
        """The gradient with respect to s, plus `more`, written to `into`, which may be `grad` or `more`."""
        dw = self.by.norm_backward(s, self.weight, r, grad, more, into, self.weight in grads)
        if dw is not None:
            add(grads, self.weight, dw)
        return into


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """The live parameters of one decoder layer."""

    norm: Norm
    q: Linear
    k: Linear
    v: Linear
    out: Linear
    q_norm: Norm | None  # Qwen 3
    k_norm: Norm | None
    mlp_norm: Norm
    gate: Linear
    up: Linear
    down: Linear

    @classmethod
    def of(cls, module: Any) -> FusedLayer | None:
        """The layer, or None if one of its linear layers is not supported."""
        attention, mlp = module.self_attn, module.mlp
        projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        q, k, v, out, gate, up, down = (
            Linear.of(m) for m in (*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        if q is None or k is None or v is None or out is None or gate is None or up is None or down is None:
            return None
        q_norm, k_norm = (
            Norm.of(attention._modules[n]) if n in attention._modules else None for n in ("q_norm", "k_norm")
        )
        norm, mlp_norm = Norm.of(module.input_layernorm), Norm.of(module.post_attention_layernorm)
        return cls(norm, q, k, v, out, q_norm, k_norm, mlp_norm, gate, up, down)

    def parameters(self) -> Iterator[Tensor]:
        for norm in (self.norm, self.q_norm, self.k_norm, self.mlp_norm):
            if norm is not None:
                yield norm.weight
        for linear in (self.q, self.k, self.v, self.out, self.gate, self.up, self.down):
            yield from linear.parameters()


@dataclass(frozen=True, slots=True)
class FusedRow:
    """The packed row of one forward pass: tokens, rotary tables, attention layout, requested positions."""

    tokens_T: Tensor
    cos: Tensor  # [T, W]
    sin: Tensor  # [T, W]
    seen: Families | flash.FlashLayout  # which keys a query attends to, in the layout of the attention kernels
    rows_U: Tensor | None  # distinct requested positions, the only rows computed after the last attention; None: all
    inverse_N: Tensor  # for each requested position, its index in rows_U


@dataclass(slots=True)
class Kept:
    """The activations of one layer that its backward pass needs."""

    x: Tensor  # residual stream at the layer's input
    r: Tensor  # 1 / RMS of x
    q: Tensor  # queries, keys and values as attended to, after norms and rotary embedding
    k: Tensor
    v: Tensor
    raw: tuple[Tensor, Tensor, Tensor, Tensor] | None  # queries and keys before their norms, and the 1 / RMS of both
    out: Tensor  # attention output
    lse: Tensor  # log-sum-exp of the attention scores
    y: Tensor  # residual stream before the MLP
    ry: Tensor  # 1 / RMS of y
    g: Tensor  # output of the gate projection
    u: Tensor  # output of the up projection


@dataclass(slots=True)
class FusedForward:
    """What one forward pass stores for backward: the activations of each layer, and the last norm's input x and r."""

    row: FusedRow
    kept: list[Kept]
    x: Tensor
    r: Tensor


class FusedDecoder:
    """The decoder of a model, on the model's live parameters."""

    def __init__(self, base: Any, found: list[FusedLayer], tied: bool) -> None:
        """base: transformers' decoder. found: its layers. tied: the embedding is also the output head, so its gradient
        is dense anyway."""
        attention = base.layers[0].self_attn
        self.layers, self.tied = found, tied
        self.norm = Norm.of(base.norm)
        self.embedding: nn.Embedding = base.embed_tokens
        self.rotary: nn.Module = base.rotary_emb
        self.width: int = attention.head_dim
        self.scale: float = attention.scaling
        self.by = self.norm.by
        self.attention: Any = attend if self.by is layers else flash

    def hidden(
        self, tokens_T: Tensor, positions_T: Tensor, plan: PackedPlan, asked_N: Tensor, in_place: bool = False
    ) -> Tensor:
        """The last hidden states at the packed positions asked_N, [N, D], differentiable.

        in_place: whether backward accumulates into `.grad` (see `gradients.py`).
        """
        rows, inverse = asked_N.unique(return_inverse=True)
        cos, sin = self.rotary(self.embedding.weight, positions_T[None])
        rows_U = None if len(rows) == len(tokens_T) else rows
        layout = plan.lines if self.attention is flash else plan.families
        row = FusedRow(tokens_T, cos[0].contiguous(), sin[0].contiguous(), layout, rows_U, inverse)
        trained = [p for p in self.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
        if not trained:
            with torch.no_grad():
                return self.forward(row, keep=False)[0]
        return _Hidden.apply(self, row, trained, in_place, *trained)  # pyright: ignore[reportReturnType]

    def parameters(self) -> Iterator[Tensor]:
        yield self.embedding.weight
        for layer in self.layers:
            yield from layer.parameters()
        yield self.norm.weight

    # ------------------------------------------------------------ forward

    def forward(self, row: FusedRow, keep: bool) -> tuple[Tensor, FusedForward | None]:
        """The hidden states [N, D], and with keep what backward needs."""
        x, delta, activations = self.embedding.weight.index_select(0, row.tokens_T), None, []
        last = self.layers[-1]
        for layer in self.layers:
            x, delta, layer_activations = self._layer(layer, x, delta, row, row.rows_U if layer is last else None)
            if keep:
                activations.append(layer_activations)
        x, h, r = self.norm(x, delta)
        return h.index_select(0, row.inverse_N), FusedForward(row, activations, x, r) if keep else None

    def _layer(
        self, layer: FusedLayer, x: Tensor, delta: Tensor | None, row: FusedRow, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Kept]:
        """(residual stream before the MLP, output of the MLP, which the next norm adds, activations for backward).

        delta: the output of the MLP of the layer before. rows: the rows to go on with after attention (None: all).
        """
        x, h, r = layer.norm(x, delta)
        T = len(h)
        q, k, v = (linear.forward(h).view(T, -1, self.width) for linear in (layer.q, layer.k, layer.v))
        raw = None
        if layer.q_norm is not None and layer.k_norm is not None:
            (raw_q, q, rq), (raw_k, k, rk) = layer.q_norm(q), layer.k_norm(k)
            raw = raw_q, raw_k, rq, rk
        self.by.rotate_(q, row.cos, row.sin)
        self.by.rotate_(k, row.cos, row.sin)
        out, lse = self.attention.attend(q, k, v, row.seen, self.scale)
        attended, residual = out.view(T, -1), x
        if rows is not None:
            attended, residual = attended.index_select(0, rows), x.index_select(0, rows)
        y, h, ry = layer.mlp_norm(residual, layer.out.forward(attended, h if rows is None else None))
        g, u = layer.gate.forward(h), layer.up.forward(h)
        delta = layer.down.forward(self.by.gate(g, u), h)
        return y, delta, Kept(x, r, q, k, v, raw, out, lse, y, ry, g, u)

    # ------------------------------------------------------------ backward

    def backward(self, run: FusedForward, grad_ND: Tensor, grads: Gradients) -> None:
        """Adds to grads, given the gradient with respect to the hidden states. Consumes the activations in `run`."""
        row = run.row
        # summed in float32: all answers to a prompt request the hidden state at the prompt's last token
        dx = torch.zeros_like(run.x, dtype=torch.float32).index_add_(0, row.inverse_N, grad_ND.float()).to(run.x.dtype)
        self.norm.backward(run.x, run.r, dx, None, dx, grads)
        embedding_trained = self.embedding.weight in grads
        for index in range(len(self.layers) - 1, self._first_layer(grads) - 1, -1):
            layer, saved = self.layers[index], run.kept.pop()
            dx = self._mlp_backward(layer, saved, dx, grads)
            rows = row.rows_U if layer is self.layers[-1] else None
            dx = self._attention_backward(layer, saved, dx, row, rows, grads)
        if embedding_trained:
            add(grads, self.embedding.weight, self._embedding_gradient(row.tokens_T, dx))

    def _first_layer(self, grads: Gradients) -> int:
        """Index of the lowest layer that the gradient has to reach."""
        if self.embedding.weight in grads:
            return 0
        trained = (i for i, layer in enumerate(self.layers) if any(p in grads for p in layer.parameters()))
        return next(trained, len(self.layers))

    def _mlp_backward(self, layer: FusedLayer, saved: Kept, dx: Tensor, grads: Gradients) -> Tensor:
        act = layer.down.inputs(dx, torch.empty_like(saved.g))
        self.by.gate_backward_(saved.g, saved.u, act)
        layer.down.weights(act, dx, grads)
        dh = layer.gate.inputs(saved.g, torch.empty_like(dx))
        layer.up.inputs(saved.u, dh, add=True)
        h = layer.mlp_norm.again(saved.y, saved.ry)
        layer.gate.weights(h, saved.g, grads)
        layer.up.weights(h, saved.u, grads)
        return layer.mlp_norm.backward(saved.y, saved.ry, dh, dx, dx, grads)

    def _attention_backward(
        self, layer: FusedLayer, saved: Kept, dx: Tensor, row: FusedRow, rows: Tensor | None, grads: Gradients
    ) -> Tensor:
        T = len(row.tokens_T)
        out = saved.out.view(T, -1)
        d_out = layer.out.inputs(dx, dx.new_empty(len(dx), out.shape[1]))
        layer.out.weights(out if rows is None else out.index_select(0, rows), dx, grads)
        if rows is not None:
            d_out = torch.zeros_like(out).index_copy_(0, rows, d_out)
            dx = dx.new_zeros(T, dx.shape[1]).index_copy_(0, rows, dx)
        dq, dk, dv = self.attention.attend_backward(
            saved.q, saved.k, saved.v, saved.out, saved.lse, d_out.view_as(saved.out), row.seen, self.scale
        )
        self.by.rotate_(dq, row.cos, row.sin, -1.0)
        self.by.rotate_(dk, row.cos, row.sin, -1.0)
        if saved.raw is not None and layer.q_norm is not None and layer.k_norm is not None:
            raw_q, raw_k, rq, rk = saved.raw
            layer.q_norm.backward(raw_q, rq, dq, None, dq, grads)
            layer.k_norm.backward(raw_k, rk, dk, None, dk, grads)
        h, dh = layer.norm.again(saved.x, saved.r), torch.empty_like(dx)
        for i, (linear, d) in enumerate(((layer.q, dq), (layer.k, dk), (layer.v, dv))):
            linear.inputs(d.view(T, -1), dh, add=i > 0)
            linear.weights(h, d.view(T, -1), grads)
        return layer.norm.backward(saved.x, saved.r, dh, dx, dx, grads)

    def _embedding_gradient(self, tokens_T: Tensor, dx: Tensor) -> Tensor:
        """The embedding's gradient, given that with respect to its output; sparse when the embedding is tied."""
        embedding = self.embedding
        pad = -1 if embedding.padding_idx is None else embedding.padding_idx
        if not self.tied:
            return torch.ops.aten.embedding_dense_backward(dx, tokens_T, embedding.num_embeddings, pad, False)
        # sparse, so that the few rows are added to the head's dense gradient without a second table of that size
        non_pad = (tokens_T != pad).nonzero()[:, 0]
        indices, rows, shape = tokens_T[None, non_pad], dx[non_pad], embedding.weight.shape
        if dx.dtype == torch.float32:
            return torch.sparse_coo_tensor(indices, rows, shape, check_invariants=False)
        # the rows of a token that occurs several times are summed in float32 first
        summed = torch.sparse_coo_tensor(indices, rows.float(), shape, check_invariants=False).coalesce()
        return torch.sparse_coo_tensor(
            summed.indices(), summed.values().to(dx.dtype), shape, is_coalesced=True, check_invariants=False
        )


class _Hidden(torch.autograd.Function):
    """The whole decoder as one autograd function of its trained parameters."""

    @staticmethod
    def forward(
        ctx: Any, decoder: FusedDecoder, row: FusedRow, trained: list[Tensor], in_place: bool, *_: Tensor
    ) -> Tensor:
        ctx.decoder, ctx.trained, ctx.in_place = decoder, trained, in_place
        out, ctx.run = decoder.forward(row, keep=True)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grads: Gradients = dict.fromkeys(ctx.trained)
        run, ctx.run = ctx.run, None
        assert run is not None, "backward consumes the stored activations: only one backward a forward"
        taken(grads, ctx.in_place)
        ctx.decoder.backward(run, grad.contiguous(), grads)
        given(grads, ctx.in_place)
        return None, None, None, None, *grads.values()


def of(base: Any, head: Tensor | None) -> FusedDecoder | None:
    """The fused decoder for transformers' decoder `base`, or None where it is not supported (see the top of this file).

    head: the weights of the model's output head.
    """
    if not known(base, base.config.max_position_embeddings) or not _has_kernels(base):
        return None
    layers_or_none = [FusedLayer.of(module) for module in base.layers]
    supported = [layer for layer in layers_or_none if layer is not None]
    if (
        len(supported) < len(layers_or_none)
        or type(base.embed_tokens) is not nn.Embedding
        or base.embed_tokens.max_norm
    ):
        return None
    return FusedDecoder(base, supported, head is base.embed_tokens.weight)


def _has_kernels(base: Any) -> bool:
    """Whether the weights are contiguous, of one dtype and on one device, and there are kernels for that."""
    weights = list(base.parameters())
    first = weights[0]
    if any(p.dtype != first.dtype or p.device != first.device or not p.is_contiguous() for p in weights):
        return False
    if first.is_cuda:
        return flash.knows(first.device, first.dtype, base.layers[0].self_attn.head_dim)
    return readable(first) and missing() is None


def missing() -> str | None:
    """The reason why there are no kernels for the CPU, as a message to the user; None if there are."""
    return why("layers") or why("attend")
