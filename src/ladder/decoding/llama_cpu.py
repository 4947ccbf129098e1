"""The Llama layout's decoding path on a CPU: prefill in torch's operators, each decode step as one call of a C kernel.

`llama.py` computes the same in operators; it is the path without a compiler and on other devices, and the oracle.
docs/speed.md has the measurements: the kernel prefetches weights while it uses the block before them, attention makes
no copies, and a step costs the interpreter one call instead of a thousand.

In bfloat16 (`NativeSampler`'s dtype) matrices, keys and values take half the memory and half the time to read, and a
processor with units for it multiplies several times faster. Sums, norms, softmax and sampling stay in float32. The
sampled distribution then differs from the engine's by more than rounding of float32, so a loss has to correct for the
difference (`importance_cap`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.decoding.llama import Llama, read
from ladder.decoding.llama_weights import Matrix
from ladder.decoding.prefill import Prompts
from ladder.decoding.shared_cache import Store
from ladder.kernels import decode, library, memory


def obstacle(base: Any) -> str | None:
    """Why the C kernels cannot decode a model that `llama.fits` accepts, in a few words; None if they can."""
    device = base.embed_tokens.weight.device.type
    if device != "cpu":
        return f"the model is on {device}"
    if reason := library.why("decode"):
        return reason
    widths = (base.embed_tokens.weight.shape[1], base.layers[0].self_attn.head_dim)
    odd = [w for w in widths if w % decode.vector()]
    return f"its width of {odd[0]} is no multiple of {decode.vector()}" if odd else None


def pack(model: Llama, dtype: torch.dtype = torch.float32) -> decode.DecodeWeights:
    """The model's weights, packed for the kernels. In bfloat16 the prefill multiplies by the packed weights, too."""
    V, D = model.head.weight.shape
    sizes = decode.Sizes(D, model.heads, model.key_heads, model.width, model.layers[0].gate.weight.shape[0], V)
    every = [m for layer in model.layers for m in (layer.qkv, layer.out, layer.gate, layer.up, layer.down)]
    arena = decode.Arena([m.weight.shape for m in [*every, model.head]], dtype)

    def packed(matrix: Matrix) -> decode.PackedMatrix:
        laid = arena.pack(matrix.weight)
        if laid.half:
            matrix.leave_to(laid.multiply)
        return laid

    layers = [
        decode.LayerWeights(
            layer.norm, packed(layer.qkv), layer.qkv.bias, layer.q_norm, layer.k_norm,
            packed(layer.out), layer.out.bias, layer.mlp_norm,
            packed(layer.gate), layer.gate.bias, packed(layer.up), layer.up.bias,
            packed(layer.down), layer.down.bias,
        )
        for layer in model.layers
    ]  # fmt: skip
    return decode.DecodeWeights(
        sizes, layers, eps=model.eps, embedding=model.embedding.contiguous(), norm=model.norm,
        head=packed(model.head), head_bias=model.head.bias,
        cos=model.cos.contiguous(), sin=model.sin.contiguous(),
    )  # fmt: skip


class Compiled(Store):
    """A `backend.Decoding` whose steps are in C."""

    ordered = False

    def __init__(self, model: Llama, weights: decode.DecodeWeights, slots: int) -> None:
        like = model.embedding.new_empty(0, dtype=weights.dtype)
        super().__init__(len(model.layers), model.key_heads, model.width, slots, like, align=decode.vector())
        self.model, self.weights, self.length = model, weights, len(model.cos)
        self.turn: decode.Step | None = None

    def changed(self) -> None:
        self.turn = None

    def _fresh(self, numbers: int) -> Tensor:
        return memory.empty(numbers, self.like.dtype)  # places behind a row's own tokens are masked or not read

    def read(self, prompts: Prompts, first: int) -> Tensor:
        logits, kept = read(self.model, prompts)
        self.fill(kept, prompts, first)
        return logits

    def step(self, tokens_A: np.ndarray, positions_A: np.ndarray) -> Tensor:
        own = self.places(positions_A)
        if self.turn is None:
            s = self.weights.sizes
            most = decode.piece(len(own), s.H, s.KH, self.weights.threads)
            units = decode.Units(self.owner, self.prompt_lengths, most)
            self.turn = decode.Step(self.weights, units, len(own), self.room, self.own, self.prompts)
        return self.turn(tokens_A, positions_A, own)
