"""The decoding path of the Llama layout: Llama, Qwen 2, Qwen 3 and Mistral, as plain functions over packed weights.

    x = x + O attend(rope(Q h), rope(K h), V h),  h = norm(x)
    x = x + D (silu(G h) * U h),                  h = norm(x)                  logits = E norm(x)

transformers' modules compute the same (`modules.py`, the oracle) with three times as many operations over unpacked
weights. Here query, key and value are one product, additions and SiLU are part of the products, the scale of the scores
is part of the queries' weights, and prompts are stored once (`llama_torch.py`). `backend.py` packs the weights anew
when a sampler begins to decode, so they are never stale.

Adapters are added to the weights; in bfloat16 and float16, whose rounding would remove them, they stay separate.

Left out, and decoded by the modules: other families, types other than float32 (on CUDA: float32 and the halves),
windows shorter than the context, rotations that depend on the length, other activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ladder.attention.packed import PackedPlan
from ladder.decoding.key_values import KeyValues, Layout, Past
from ladder.decoding.llama_torch import Shared
from ladder.decoding.llama_weights import Effective, Matrix, effective, unmerged
from ladder.decoding.prefill import Prompts
from ladder.kernels import attend, dispatch
from ladder.models.head import Head
from ladder.models.llama_layout import known

TYPES = {"cuda": dispatch.TYPES}
"""Types of the weights that this path decodes, by device; only float32 on other devices."""
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(slots=True)
class Layer:
    """One layer's weights. norms: before attention, before the MLP, and of queries and keys (Qwen 3)."""

    norm: Tensor
    qkv: Matrix
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Matrix
    mlp_norm: Tensor
    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(slots=True)
class Llama:
    """A model's weights as they are now. heads: of queries; key_heads: of keys; width: of a head; scaling: what
    of the scores' scale the queries' weights do not hold; cos, sin [length, D], sin with the sign that its half of the
    pair has."""

    layers: list[Layer]
    embedding: Tensor
    norm: Tensor
    head: Matrix
    eps: float
    heads: int
    key_heads: int
    width: int
    scaling: float
    cos: Tensor
    sin: Tensor
    lent: frozenset[int] = frozenset()  # addresses of the model's parameters, some of which are used unpacked

    @classmethod
    def of(cls, base: Any, head: Head, length: int, pack: bool) -> Llama:
        """The weights of a model that `fits`. length: most positions. pack: lay the matrices out for oneDNN."""
        config = base.config
        attention = base.layers[0].self_attn
        width: int = attention.head_dim
        line = torch.arange(length, device=head.weight.device)
        cos, sin = base.rotary_emb(base.embed_tokens.weight, line[None])
        sin = torch.cat([-sin[0, :, : width // 2], sin[0, :, width // 2 :]], -1)
        return cls(
            [_layer(module, pack) for module in base.layers],
            base.embed_tokens.weight.detach(),
            base.norm.weight.detach(),
            Matrix([Effective(head.weight.detach(), None if head.bias is None else head.bias.detach())], pack),
            base.norm.variance_epsilon,
            config.num_attention_heads,
            config.num_key_value_heads,
            width,
            1.0 if _scaled(head.weight) else attention.scaling,
            cos[0],
            sin,
            frozenset(p.data_ptr() for p in (*base.parameters(), head.weight)),
        )

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        found = [self.embedding, self.norm, self.cos, self.sin, *self.head.tensors()]
        for layer in self.layers:
            for part in (getattr(layer, f.name) for f in fields(layer)):
                found += part.tensors() if isinstance(part, Matrix) else [] if part is None else [part]
        return found

    def refresh(self, now: Llama) -> bool:
        """Copies the model's present weights to the addresses of these. False, with nothing changed, where that is not
        possible: the layout differs (an adapter was switched on or off), or a tensor to be written to is a parameter of
        the model itself."""
        both = list(zip(self.tensors(), now.tensors(), strict=False))
        if len(self.tensors()) != len(now.tensors()):
            return False
        moved = [(mine, fresh) for mine, fresh in both if mine.data_ptr() != fresh.data_ptr()]
        if any(a.shape != b.shape or a.dtype != b.dtype or a.device != b.device for a, b in both):
            return False
        if any(mine.data_ptr() in self.lent for mine, _ in moved):
            return False
        for mine, fresh in moved:
            mine.copy_(fresh)
        return True

    def rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def qkv(self, layer: Layer, x_AD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [A, heads, D], keys and values [A, key_heads, D]; cos and sin [A, 1, D]."""
        A, both = len(x_AD), self.heads + self.key_heads
        x = layer.qkv(self.rms(x_AD, layer.norm)).view(A, both + self.key_heads, self.width)
        qk = x[:, :both]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = x[:, : self.heads], x[:, self.heads : both]
            qk = torch.cat([self.rms(q, layer.q_norm), self.rms(k, layer.k_norm)], 1)
        half = self.width // 2
        turned = torch.cat([qk[..., half:], qk[..., :half]], -1).mul_(sin)
        qk = turned.addcmul_(qk, cos)
        return qk[:, : self.heads], qk[:, self.heads :], x[:, both:]

    def finish(self, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
        """A layer after its attention: output projection and MLP; x and the result [A, D]."""
        x = layer.out(attended, onto=x)
        h = self.rms(x, layer.mlp_norm)
        return layer.down(layer.up(h, times=layer.gate(h, silu=True)), onto=x)


def _over(plan: PackedPlan | Past, layer: int, scaling: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over the packed prompts, [T, H, D]; shared prefixes need no mask where there is a kernel."""
    if isinstance(plan, PackedPlan) and plan.shared and attend.usable(q):
        return attend.attend(q.contiguous(), k.contiguous(), v.contiguous(), plan.families, scaling)[0]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return plan.attend(layer, q, k, v, scaling=scaling, window=0, softcap=0.0)[0]


def read(m: Llama, prompts: Prompts) -> tuple[Tensor, KeyValues]:
    """Logits [p, V] behind each prompt, and the keys and values that `prompts.line` places."""
    device = m.embedding.device
    plan, positions = prompts.plan.to(device), prompts.positions.to(device)
    cos, sin = m.cos[positions][:, None], m.sin[positions][:, None]
    x = m.embedding.index_select(0, prompts.tokens.to(device))
    kept: KeyValues = {}
    for i, layer in enumerate(m.layers):
        q, k, v = m.qkv(layer, x, cos, sin)
        if isinstance(plan, Past):
            k, v = plan.join(i, k, v)
        kept[i] = k, v
        x = m.finish(layer, x, _over(plan, i, m.scaling, q, k, v).reshape(len(x), -1))
    return m.head(m.rms(x.index_select(0, prompts.last.to(device)), m.norm)), kept


class Decoder:
    """A `backend.Decoding` in torch's operators."""

    ordered = True  # attention is computed in spans of rows

    def __init__(self, model: Llama, slots: int) -> None:
        assert model.scaling == 1.0, "of float32 weights"
        self.model, self.slots, self.length = model, slots, len(model.cos)
        self.device = model.embedding.device
        self.store = Shared(
            len(model.layers), model.key_heads, model.heads // model.key_heads, model.width, slots, model.embedding
        )

    def read(self, prompts: Prompts, first: int) -> Tensor:
        logits, kept = read(self.model, prompts)
        self.fill(kept, prompts, first)
        return logits

    def fill(self, cache: KeyValues, layout: Layout, first: int) -> None:
        self.store.fill(cache, layout, first)

    def extract(self, slot: int, length: int) -> KeyValues:
        return self.store.extract(slot, length)

    def step(self, tokens_A: np.ndarray, positions_A: np.ndarray) -> Tensor:
        m, A = self.model, len(tokens_A)
        self.store.begin(positions_A)
        positions = torch.from_numpy(positions_A).to(self.device)
        cos, sin = m.cos.index_select(0, positions)[:, None], m.sin.index_select(0, positions)[:, None]
        x = m.embedding.index_select(0, torch.from_numpy(tokens_A).to(self.device))
        rows, group = A * m.key_heads, m.heads // m.key_heads
        for i, layer in enumerate(m.layers):
            q, k, v = m.qkv(layer, x, cos, sin)
            out = self.store.attend(
                i, q.reshape(rows, group, m.width), k.reshape(rows, m.width), v.reshape(rows, m.width)
            )
            x = m.finish(layer, x, out.view(A, -1))
        return m.head(m.rms(x, m.norm))

    def keep(self, kept: np.ndarray, positions_A: np.ndarray) -> None:
        self.store.keep(kept, positions_A)


def fits(base: nn.Module, head: Head, context: int) -> bool:
    """Whether `Llama.of` supports the model (the decoder of one) with all its layers."""
    kind = head.weight.dtype
    if kind not in TYPES.get(head.weight.device.type, (torch.float32,)) or head.scale != 1.0 or head.softcap:
        return False
    if not known(base, context):
        return False
    linear = [m for name, m in base.named_modules() if name.rsplit(".", 1)[-1] in LINEAR]
    found = map(_way(kind), linear)
    return all(f is not None and f.weight.dtype == kind for f in found)


def _way(kind: torch.dtype) -> Callable[[nn.Module], Effective | None]:
    """How linear layers of a type are read: a weight of 8 or 11 bits would lose an adapter's small change."""
    return effective if kind == torch.float32 else unmerged


def _scaled(weight: Tensor) -> bool:
    """Whether the scale of the scores is part of the queries' weights: not where that would round them again."""
    return weight.dtype == torch.float32


def _layer(module: Any, pack: bool) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    way = _way(module.input_layernorm.weight.dtype)

    def taken(layer: nn.Module) -> Effective:
        found = way(layer)
        assert found is not None, "a layer that `fits` has accepted"
        return found

    parts = [taken(m) for m in (attention.q_proj, attention.k_proj, attention.v_proj)]
    q_norm = attention.q_norm.weight.detach() if hasattr(attention, "q_norm") else None
    q = parts[0]
    scaling = attention.scaling if _scaled(q.weight) else 1.0
    if q_norm is not None:
        q_norm = q_norm * scaling
    elif scaling != 1.0:
        parts[0] = Effective(q.weight * scaling, None if q.bias is None else q.bias * scaling)
    others = attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
    matrices = [Matrix([taken(m)], pack) for m in others]
    return Layer(
        module.input_layernorm.weight.detach(),
        Matrix(parts, pack),
        q_norm,
        attention.k_norm.weight.detach() if hasattr(attention, "k_norm") else None,
        matrices[0],
        module.post_attention_layernorm.weight.detach(),
        *matrices[1:],
    )
