"""The decoder of the Llama layout (`ladder.models.llama_layout`) over a packed row, forward and backward by hand.

    h = norm(x),  x = x + O attend(rope(Q h), rope(K h), V h)
    h = norm(x),  x = x + D (silu(G h) * U h)

It computes what transformers' modules do, with the parameters where they are, and autograd sees one function. What
stands between two matrix products is one pass over memory each (`kernels/between.py`), attention reads the packed row
as it lies (`kernels/attend.py`; on CUDA `flash.py`), norms and gates are computed again in backward rather than kept,
and behind the last attention only the rows go on that something is asked of.

Float32 on the processor and halves on CUDA. Left out, and computed by the modules, which are the oracle: other families
and types, adapters of other kinds, recomputed layers, and machines without a compiler.
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
    by: Any  # the kernels

    @classmethod
    def of(cls, module: Any) -> Norm:
        return cls(module.weight, module.variance_epsilon, dispatch.must(module.weight))

    def __call__(self, x: Tensor, delta: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(x + delta, its norm, what the gradient needs); the norm is written over delta."""
        return self.by.norm(x, delta, self.weight, self.eps, delta)

    def again(self, s: Tensor, r: Tensor) -> Tensor:
        return self.by.norm_again(s, self.weight, r, torch.empty_like(s))

    def backward(
        self, s: Tensor, r: Tensor, grad: Tensor, more: Tensor | None, into: Tensor, grads: Gradients
    ) -> Tensor:
        """The gradient by s plus `more`, in `into`, which may be either."""
        dw = self.by.norm_backward(s, self.weight, r, grad, more, into, self.weight in grads)
        if dw is not None:
            add(grads, self.weight, dw)
        return into


@dataclass(frozen=True, slots=True)
class Layer:
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
    def of(cls, module: Any) -> Layer | None:
        a, mlp = module.self_attn, module.mlp
        linears = a.q_proj, a.k_proj, a.v_proj, a.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
        found = [Linear.of(m) for m in linears]
        q, k, v, out, gate, up, down = found
        if q is None or k is None or v is None or out is None or gate is None or up is None or down is None:
            return None
        q_norm, k_norm = (Norm.of(a._modules[n]) if n in a._modules else None for n in ("q_norm", "k_norm"))
        before, after = Norm.of(module.input_layernorm), Norm.of(module.post_attention_layernorm)
        return cls(before, q, k, v, out, q_norm, k_norm, after, gate, up, down)

    def parameters(self) -> Iterator[Tensor]:
        for norm in (self.norm, self.q_norm, self.k_norm, self.mlp_norm):
            if norm is not None:
                yield norm.weight
        for linear in (self.q, self.k, self.v, self.out, self.gate, self.up, self.down):
            yield from linear.parameters()


@dataclass(frozen=True, slots=True)
class Row:
    """The packed row: tables of its rotations, who attends to whom, the rows that go on behind the last attention."""

    tokens_T: Tensor
    cos: Tensor
    sin: Tensor
    seen: Families | flash.Lines
    rows_U: Tensor | None  # None: all
    inverse_N: Tensor  # which of them each asked position is


@dataclass(slots=True)
class Kept:
    """What a layer's backward needs of its forward. raw: queries and keys before their norms, and the norms' scales."""

    x: Tensor
    r: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    raw: tuple[Tensor, Tensor, Tensor, Tensor] | None
    out: Tensor
    lse: Tensor
    y: Tensor
    ry: Tensor
    g: Tensor
    u: Tensor


@dataclass(slots=True)
class Run:
    """One forward pass: kept by layer, and the last norm's."""

    row: Row
    kept: list[Kept]
    x: Tensor
    r: Tensor


class Decoder:
    """A model's decoder, its parameters live."""

    def __init__(self, base: Any, found: list[Layer], tied: bool) -> None:
        """tied: the embedding is the output head as well, whose gradient is dense in any case."""
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
        """The last hidden states at the asked positions, [N, D], differentiable. in_place: see `gradients.taken`."""
        rows, inverse = asked_N.unique(return_inverse=True)
        cos, sin = self.rotary(self.embedding.weight, positions_T[None])
        some = None if len(rows) == len(tokens_T) else rows
        seen = plan.lines if self.attention is flash else plan.families
        row = Row(tokens_T, cos[0].contiguous(), sin[0].contiguous(), seen, some, inverse)
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

    def forward(self, row: Row, keep: bool) -> tuple[Tensor, Run | None]:
        x, delta, kept = self.embedding.weight.index_select(0, row.tokens_T), None, []
        last = self.layers[-1]
        for layer in self.layers:
            x, delta, one = self._layer(layer, x, delta, row, row.rows_U if layer is last else None)
            if keep:
                kept.append(one)
        x, h, r = self.norm(x, delta)
        return h.index_select(0, row.inverse_N), Run(row, kept, x, r) if keep else None

    def _layer(
        self, layer: Layer, x: Tensor, delta: Tensor | None, row: Row, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Kept]:
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
        on, x_on = out.view(T, -1), x
        if rows is not None:
            on, x_on = on.index_select(0, rows), x.index_select(0, rows)
        y, h, ry = layer.mlp_norm(x_on, layer.out.forward(on, h if rows is None else None))
        g, u = layer.gate.forward(h), layer.up.forward(h)
        delta = layer.down.forward(self.by.gate(g, u), h)
        return y, delta, Kept(x, r, q, k, v, raw, out, lse, y, ry, g, u)

    # ------------------------------------------------------------ backward

    def backward(self, run: Run, grad_ND: Tensor, grads: Gradients) -> None:
        """Fills grads, and uses the run up."""
        row = run.row
        # summed in float32: what ends a prompt is asked by all of its answers
        dx = torch.zeros_like(run.x, dtype=torch.float32).index_add_(0, row.inverse_N, grad_ND.float()).to(run.x.dtype)
        self.norm.backward(run.x, run.r, dx, None, dx, grads)
        whole = self.embedding.weight in grads
        for at in range(len(self.layers) - 1, self._lowest(grads) - 1, -1):
            layer, one = self.layers[at], run.kept.pop()
            dx = self._mlp_backward(layer, one, dx, grads)
            some = row.rows_U if layer is self.layers[-1] else None
            dx = self._attention_backward(layer, one, dx, row, some, grads)
        if whole:
            add(grads, self.embedding.weight, self._embedding_gradient(row.tokens_T, dx))

    def _lowest(self, grads: Gradients) -> int:
        """The first layer that a gradient has to reach."""
        if self.embedding.weight in grads:
            return 0
        some = (i for i, layer in enumerate(self.layers) if any(p in grads for p in layer.parameters()))
        return next(some, len(self.layers))

    def _mlp_backward(self, layer: Layer, one: Kept, dx: Tensor, grads: Gradients) -> Tensor:
        act = layer.down.inputs(dx, torch.empty_like(one.g))
        self.by.gate_backward_(one.g, one.u, act)
        layer.down.weights(act, dx, grads)
        dh = layer.gate.inputs(one.g, torch.empty_like(dx))
        layer.up.inputs(one.u, dh, add=True)
        h = layer.mlp_norm.again(one.y, one.ry)
        layer.gate.weights(h, one.g, grads)
        layer.up.weights(h, one.u, grads)
        return layer.mlp_norm.backward(one.y, one.ry, dh, dx, dx, grads)

    def _attention_backward(
        self, layer: Layer, one: Kept, dx: Tensor, row: Row, rows: Tensor | None, grads: Gradients
    ) -> Tensor:
        T = len(row.tokens_T)
        out = one.out.view(T, -1)
        d_out = layer.out.inputs(dx, dx.new_empty(len(dx), out.shape[1]))
        layer.out.weights(out if rows is None else out.index_select(0, rows), dx, grads)
        if rows is not None:
            d_out = torch.zeros_like(out).index_copy_(0, rows, d_out)
            dx = dx.new_zeros(T, dx.shape[1]).index_copy_(0, rows, dx)
        dq, dk, dv = self.attention.attend_backward(
            one.q, one.k, one.v, one.out, one.lse, d_out.view_as(one.out), row.seen, self.scale
        )
        self.by.rotate_(dq, row.cos, row.sin, -1.0)
        self.by.rotate_(dk, row.cos, row.sin, -1.0)
        if one.raw is not None and layer.q_norm is not None and layer.k_norm is not None:
            raw_q, raw_k, rq, rk = one.raw
            layer.q_norm.backward(raw_q, rq, dq, None, dq, grads)
            layer.k_norm.backward(raw_k, rk, dk, None, dk, grads)
        h, dh = layer.norm.again(one.x, one.r), torch.empty_like(dx)
        for i, (linear, d) in enumerate(((layer.q, dq), (layer.k, dk), (layer.v, dv))):
            linear.inputs(d.view(T, -1), dh, add=i > 0)
            linear.weights(h, d.view(T, -1), grads)
        return layer.norm.backward(one.x, one.r, dh, dx, dx, grads)

    def _embedding_gradient(self, tokens_T: Tensor, dx: Tensor) -> Tensor:
        e = self.embedding
        pad = -1 if e.padding_idx is None else e.padding_idx
        if not self.tied:
            return torch.ops.aten.embedding_dense_backward(dx, tokens_T, e.num_embeddings, pad, False)
        own = (tokens_T != pad).nonzero()[:, 0]  # autograd adds a few rows to the head's gradient instead of a table
        at, rows, shape = tokens_T[None, own], dx[own], e.weight.shape
        if dx.dtype == torch.float32:
            return torch.sparse_coo_tensor(at, rows, shape, check_invariants=False)
        # a token that stands there often is summed in float32 first
        few = torch.sparse_coo_tensor(at, rows.float(), shape, check_invariants=False).coalesce()
        return torch.sparse_coo_tensor(
            few.indices(), few.values().to(dx.dtype), shape, is_coalesced=True, check_invariants=False
        )


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decoder: Decoder, row: Row, trained: list[Tensor], in_place: bool, *_: Tensor) -> Tensor:
        ctx.decoder, ctx.trained, ctx.in_place = decoder, trained, in_place
        out, ctx.run = decoder.forward(row, keep=True)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grads: Gradients = dict.fromkeys(ctx.trained)
        run, ctx.run = ctx.run, None
        assert run is not None, "what backward needs is used up by it: one backward a forward"
        taken(grads, ctx.in_place)
        ctx.decoder.backward(run, grad.contiguous(), grads)
        given(grads, ctx.in_place)
        return None, None, None, None, *grads.values()


def of(base: Any, head: Tensor | None) -> Decoder | None:
    """The decoder of a model whose output head has the weights `head`; None where it is not known here."""
    if not known(base, base.config.max_position_embeddings) or not _kind(base):
        return None
    found = [Layer.of(module) for module in base.layers]
    plain = [layer for layer in found if layer is not None]
    if len(plain) < len(found) or type(base.embed_tokens) is not nn.Embedding or base.embed_tokens.max_norm:
        return None
    return Decoder(base, plain, head is base.embed_tokens.weight)


def _kind(base: Any) -> bool:
    """Whether there are kernels for weights of this kind, all of which are of one."""
    weights = list(base.parameters())
    first = weights[0]
    if any(p.dtype != first.dtype or p.device != first.device or not p.is_contiguous() for p in weights):
        return False
    if first.is_cuda:
        return flash.knows(first.device, first.dtype, base.layers[0].self_attn.head_dim)
    return readable(first) and missing() is None


def missing() -> str | None:
    """Why there are no kernels, in a sentence; None if there are."""
    return why("layers") or why("attend")
