"""A linear layer as the fused decoder computes it: y = x W' + b, with the low-rank adapters that PEFT put around it.

    y = x W' + b + sum_a s_a (x A_a') B_a'                        LoRA: Hu et al. 2021, arXiv:2106.09685, eq. 3

The gradients are taken by hand, into buffers that are there. Left out, and so not known here: adapters with dropout, of
other kinds than plain LoRA, or merged into their weights.
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
    A: Tensor  # [rank, D]
    B: Tensor  # [N, rank]
    scale: float


@dataclass(frozen=True, slots=True)
class Linear:
    weight: Tensor  # [N, D]
    bias: Tensor | None
    wrapped: LoRALinear | None  # where adapters are switched on and off

    @classmethod
    def of(cls, layer: nn.Module) -> Linear | None:
        """None for a layer that is not known here."""
        wrapped = layer if type(layer) is LoRALinear else None
        inner = layer if wrapped is None else wrapped.base_layer
        if type(inner) is not nn.Linear or not inner.weight.is_contiguous():
            return None
        if wrapped is not None and not _plain(wrapped):
            return None
        return cls(inner.weight, inner.bias, wrapped)

    def adapters(self) -> Iterator[Adapter]:
        """Those that are switched on."""
        m = self.wrapped
        if m is None or m.disable_adapters:
            return
        assert not m.merged, "an adapter that is merged into its weights cannot be trained"
        for down, up, scale in llama_layout.adapters(m):
            yield Adapter(down, up, scale)

    def parameters(self) -> Iterator[Tensor]:
        yield self.weight
        if self.bias is not None:
            yield self.bias
        for a in self.adapters():
            yield a.A
            yield a.B

    def forward(self, x: Tensor, into: Tensor | None = None) -> Tensor:
        """[T, D] -> [T, N]."""
        y = x.new_empty(len(x), len(self.weight)) if into is None else into
        if self.bias is None:
            torch.mm(x, self.weight.t(), out=y)
        else:
            torch.addmm(self.bias, x, self.weight.t(), out=y)
        for a in self.adapters():
            y.addmm_(x @ a.A.t(), a.B.t(), alpha=a.scale)
        return y

    def inputs(self, dy: Tensor, into: Tensor, add: bool = False) -> Tensor:
        """The gradient by x, written or added to `into`."""
        torch.addmm(into, dy, self.weight, beta=float(add), out=into)
        for a in self.adapters():
            into.addmm_(dy @ a.B, a.A, alpha=a.scale)
        return into

    def weights(self, x: Tensor, dy: Tensor, grads: Gradients) -> None:
        """The gradients by what is trained here."""
        if self.weight in grads:
            add_product(grads, self.weight, dy.t(), x)
        if self.bias is not None and self.bias in grads:
            add(grads, self.bias, dy.sum(0))
        for a in self.adapters():
            if a.B in grads:
                add_product(grads, a.B, dy.t(), (x @ a.A.t()).mul_(a.scale))
            if a.A in grads:
                add_product(grads, a.A, (dy @ a.B).mul_(a.scale).t(), x)


def _plain(m: LoRALinear) -> bool:
    """An adapter as its paper has it, and no dropout."""
    return all(isinstance(d, nn.Identity) for d in m.lora_dropout.values()) and llama_layout.plain(m)
