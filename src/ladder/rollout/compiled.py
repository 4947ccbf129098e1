"""The Llama layout's decoding path on the processor: prompts are read in torch's operators, steps are one call of C.

`llama.py` computes the same in operators; it is the path where there is no compiler, on other devices, and the oracle.
What the kernel gains is in docs/speed.md: weights are fetched while the block before them is in use, attention takes
no copies, and a step costs the interpreter one call instead of a thousand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ladder.kernels import decode, memory
from ladder.rollout.llama import Llama, read
from ladder.rollout.prompts import Prompts
from ladder.rollout.store import Store


def fits(base: Any) -> bool:
    """Whether the kernels are there and know the widths of a model that `llama.fits`."""
    if base.embed_tokens.weight.device.type != "cpu" or decode.kernels() is None:
        return False
    widths = (base.embed_tokens.weight.shape[1], base.layers[0].self_attn.head_dim)
    return all(w % decode.vector() == 0 for w in widths)


def pack(model: Llama) -> decode.Weights:
    """The model's weights, laid out for the kernels."""
    matrices = [w.weight for layer in model.layers for w in (layer.qkv, layer.out, layer.gate, layer.up, layer.down)]
    arena = decode.Arena([w.shape for w in [*matrices, model.head.weight]])
    layers = [
        decode.LayerWeights(
            layer.norm, arena.pack(layer.qkv.weight), layer.qkv.bias, layer.q_norm, layer.k_norm,
            arena.pack(layer.out.weight), layer.out.bias, layer.mlp_norm,
            arena.pack(layer.gate.weight), layer.gate.bias, arena.pack(layer.up.weight), layer.up.bias,
            arena.pack(layer.down.weight), layer.down.bias,
        )
        for layer in model.layers
    ]  # fmt: skip
    V, D = model.head.weight.shape
    sizes = decode.Sizes(D, model.heads, model.key_heads, model.width, model.layers[0].gate.weight.shape[0], V)
    return decode.Weights(
        sizes, layers, eps=model.eps, embedding=model.embedding.contiguous(), norm=model.norm,
        head=arena.pack(model.head.weight), head_bias=model.head.bias,
        cos=model.cos.contiguous(), sin=model.sin.contiguous(),
    )  # fmt: skip


class Compiled(Store):
    """One call's decoding state (`native.Decoding`)."""

    ordered = False

    def __init__(self, model: Llama, weights: decode.Weights, slots: int) -> None:
        super().__init__(
            len(model.layers), model.key_heads, model.width, slots, model.embedding, align=decode.vector()
        )
        self.model, self.weights = model, weights
        self.turn: decode.Step | None = None

    def changed(self) -> None:
        self.turn = None

    def _zeros(self, numbers: int) -> Tensor:
        return memory.zeros(numbers)

    def read(self, prompts: Prompts, first: int) -> Tensor:
        logits, kept = read(self.model, prompts)
        self.add(prompts, kept, first)
        return logits

    def step(self, tokens_A: np.ndarray, positions_A: np.ndarray) -> Tensor:
        own = self.places(positions_A)
        if self.turn is None:
            units = decode.Units(self.owner, self.prompt_lengths)
            self.turn = decode.Step(self.weights, units, len(own), self.room, self.own, self.prompts)
        return self.turn(tokens_A, positions_A, own)
