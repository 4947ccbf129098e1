"""A linear layer of the fused decoder, with the low-rank adapters that PEFT wrapped around it.

    y = x W' + b + sum_a s_a (x A_a') B_a'                        LoRA: Hu et al. 2021, arXiv:2106.09685, eq. 3

Gradients are computed by hand, into existing buffers. Left out, so that `Linear.of` returns None for them: adapters
with dropout, variants of LoRA, and adapters merged into the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.lora import Linear as LoRALinear
from torch import Tensor, nn

from ladder.models import llama_layout
from ladder.models.gradients import Gradients, add, add_product


@dataclass(frozen=True, slots=True)
class Adapter:
    """One active LoRA adapter: scale (x A') B' is added to the output."""

    A: Tensor  # [rank, D]
    B: Tensor  # [N, rank]
    scale: float


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer's live parameters: D inputs, N outputs."""

    weight: Tensor  # [N, D]
    bias: Tensor | None
    wrapped: LoRALinear | None  # PEFT's layer, which says which adapters are active

    @classmethod
    def of(cls, layer: nn.Module) -> Linear | None:
        """The layer, or None for a kind of layer that is not supported (see the top of this file)."""
        wrapped = layer if type(layer) is LoRALinear else None
        inner = layer if wrapped is None else wrapped.base_layer
        if type(inner) is not nn.Linear or not inner.weight.is_contiguous():
            return None
        if wrapped is not None and not _is_supported(wrapped):
            return None
        return cls(inner.weight, inner.bias, wrapped)

    def adapters(self) -> Iterator[Adapter]:
        """The active adapters."""
        layer = self.wrapped
        if layer is None or layer.disable_adapters:
            return
        assert not layer.merged, "an adapter that is merged into its weights cannot be trained"
        for down, up, scale in llama_layout.adapters(layer):
            yield Adapter(down, up, scale)

    def parameters(self) -> Iterator[Tensor]:
        """Weight and bias, and those of the active adapters."""
        yield self.weight
        if self.bias is not None:
            yield self.bias
        for a in self.adapters():
            yield a.A
            yield a.B

    def forward(self, x: Tensor, into: Tensor | None = None) -> Tensor:
        """x [T, D] -> y [T, N], written to `into` if given."""
        y = x.new_empty(len(x), len(self.weight)) if into is None else into
        if self.bias is None:
            torch.mm(x, self.weight.t(), out=y)
        else:
            torch.addmm(self.bias, x, self.weight.t(), out=y)
        for a in self.adapters():
            y.addmm_(x @ a.A.t(), a.B.t(), alpha=a.scale)
        return y

    def inputs(self, dy: Tensor, into: Tensor, add: bool = False) -> Tensor:
        """The gradient with respect to x, written to `into`, or added to it."""
        torch.addmm(into, dy, self.weight, beta=float(add), out=into)
        for a in self.adapters():
            into.addmm_(dy @ a.B, a.A, alpha=a.scale)
        return into

    def weights(self, x: Tensor, dy: Tensor, grads: Gradients) -> None:
        """Adds the gradients with respect to the parameters that have an entry in `grads`."""
        if self.weight in grads:
            add_product(grads, self.weight, dy.t(), x)
        if self.bias is not None and self.bias in grads:
            add(grads, self.bias, dy.sum(0))
        for a in self.adapters():
            if a.B in grads:
                add_product(grads, a.B, dy.t(), (x @ a.A.t()).mul_(a.scale))
            if a.A in grads:
                add_product(grads, a.A, (dy @ a.B).mul_(a.scale).t(), x)


def _is_supported(layer: LoRALinear) -> bool:
    """Whether its adapters are plain LoRA, without dropout."""
    return all(isinstance(d, nn.Identity) for d in layer.lora_dropout.values()) and llama_layout.plain(layer)
