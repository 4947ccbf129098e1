"""Weight matrices packed for decoding: y = x W' + b with one packing for many small products.

A decode step multiplies a few dozen rows with every weight of the model. On a CPU, oneDNN's own layout of the weights
takes less than half the time of a plain product (docs/speed.md), the less the fewer the rows, and one packing serves
any number of rows: a row's result does not depend on the other rows. Matrices that read the same input are packed as
one. A low-rank adapter is added to the weights or, where rounding would remove it, multiplied separately.

Left out: shorter types (`llama_cpu.py` has bfloat16) and quantised weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ladder.models.llama_layout import adapters, plain

ROWS = 64
"""Batch size that the layout is optimised for; a layout for few rows is slower on many, but not the reverse."""


Multiply = Callable[[Tensor, Tensor | None], Tensor]
"""From x [A, D] and a bias to x W' + bias."""


@dataclass(frozen=True, slots=True)
class Effective:
    """A linear layer: weight [N, D], bias [N], and separate adapters, each A [r, D] and B [N, r], scaled."""

    weight: Tensor
    bias: Tensor | None
    apart: tuple[tuple[Tensor, Tensor], ...] = ()


class Matrix:
    """x [A, D] -> f(x W' + b) [A, N], where f adds `onto` [A, N], multiplies by `times` [A, N], or is SiLU.

    parts: the layers that read x, one below the other. pack: lay the weights out anew (a copy), where that is possible.
    """

    def __init__(self, parts: Sequence[Effective], pack: bool) -> None:
        weights, biases = [p.weight for p in parts], [p.bias for p in parts]
        weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
        some = [b for b in biases if b is not None]
        assert len(some) in (0, len(biases)), "matrices packed as one have all a bias or none"
        self.bias = torch.cat(some) if len(some) > 1 else (some[0] if some else None)
        self.packed = pack and packable(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) if self.packed else weight
        self.other: Multiply | None = None
        edges = np.cumsum([0, *map(len, weights)]).tolist()
        self.apart = [
            (slice(a, b), *pair) for p, (a, b) in zip(parts, pairwise(edges), strict=True) for pair in p.apart
        ]
        assert not (self.packed and self.apart)

    def tensors(self) -> list[Tensor]:
        found = [x for _, *pair in self.apart for x in pair]
        return [self.weight, *found] if self.bias is None else [self.weight, self.bias, *found]

    def leave_to(self, other: Multiply) -> None:
        """Multiplies by `other` from now on, and frees the weights."""
        assert not self.packed
        self.other, self.weight = other, self.weight.new_empty(0)

    def __call__(
        self, x: Tensor, *, onto: Tensor | None = None, times: Tensor | None = None, silu: bool = False
    ) -> Tensor:
        other, word = (onto, "add") if times is None else (times, "mul")
        if not self.packed:
            y = self.other(x, self.bias) if self.other else F.linear(x, self.weight, self.bias)
            for columns, down, up in self.apart:
                y[:, columns].addmm_(x @ down.t(), up.t())
            if silu:
                return F.silu(y, inplace=True)
            return y if other is None else (y.add_(other) if word == "add" else y.mul_(other))
        if other is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, word)
        after = "swish" if silu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, after, [], "")


def packable(weight: Tensor) -> bool:
    """Whether oneDNN can pack the weight on this machine."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def effective(layer: nn.Module) -> Effective | None:
    """A linear layer with its low-rank adapters added to the weight; None for other layers."""
    if type(layer) is nn.Linear:
        return Effective(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
    inner = layer._modules.get("base_layer")
    if not hasattr(layer, "get_delta_weight") or inner is None:
        return None
    found = effective(inner)
    if found is None or layer.disable_adapters:
        return found
    weight = found.weight
    for name in layer.active_adapters:  # pyright: ignore[reportGeneralTypeIssues]
        weight = weight + layer.get_delta_weight(name).detach()  # pyright: ignore[reportCallIssue]
    return replace(found, weight=weight)


def unmerged(layer: Any) -> Effective | None:
    """A linear layer with separate low-rank adapters, in the layer's own type; None for other layers."""
    if type(layer) is nn.Linear:
        return effective(layer)
    inner = layer._modules.get("base_layer")
    if type(inner) is not nn.Linear or not hasattr(layer, "lora_A"):
        return None
    found = effective(inner)
    if found is None or layer.disable_adapters:
        return found
    if not plain(layer):
        return None
    pairs = ((a.detach(), scale * b.detach()) for a, b, scale in adapters(layer))
    return replace(found, apart=tuple((a.to(found.weight), b.to(found.weight)) for a, b in pairs))
