"""The key-value cache of the modules' path and its two plans: a prefill, and one more token for every active row.

Keys and values are [slots, H_kv, length, D] per layer, preallocated and written in place. Active rows are always slots
0 .. A-1, so attention reads a slice; when rows finish, the last ones move into their slots. Grouped queries are
computed as several queries of one key head, so no key is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ladder.attention.packed import PackedPlan
from ladder.decoding.key_values import KeyValues, Past

SHORT = 128
"""Most keys for which two batched products are faster than the fused kernel on a CPU; affects speed only."""


class Cache:
    """Keys and values of `slots` sequences of `length` tokens; a layer is allocated when the model first writes it."""

    def __init__(self, slots: int, length: int) -> None:
        self.slots, self.length = slots, length
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values; k and v [A, H_kv, .., D] give heads, width, type and device of new ones."""
        if layer not in self.layers:
            self.layers[layer] = (
                k.new_zeros(self.slots, k.shape[1], self.length, k.shape[-1]),
                v.new_zeros(self.slots, v.shape[1], self.length, v.shape[-1]),
            )
        return self.layers[layer]

    def fill(self, cache: KeyValues, rows_RP: Tensor, first_slot: int) -> None:
        """Copies tokens into slots first_slot, first_slot + 1, ...: rows_RP are their places in `cache`."""
        R, P = rows_RP.shape
        flat = rows_RP.flatten()
        for layer, (k, v) in cache.items():
            for store, x in zip(self.of(layer, k, v), (k, v), strict=True):
                gathered = x.index_select(0, flat).view(R, P, *x.shape[1:])
                store[first_slot : first_slot + R, :, :P] = gathered.transpose(1, 2)

    def extract(self, slot: int, length: int) -> KeyValues:
        """A copy of a slot's first tokens."""
        return {layer: (_tokens(k, slot, length), _tokens(v, slot, length)) for layer, (k, v) in self.layers.items()}

    def move(self, to: Tensor, origin: Tensor, length: int) -> None:
        """Copies the first `length` tokens of slots `origin` into slots `to`."""
        for keys, values in self.layers.values():
            for store in (keys, values):
                store[to, :, :length] = store[origin, :, :length]


def _tokens(store: Tensor, slot: int, length: int) -> Tensor:
    """[slots, H_kv, length, D] -> [length, H_kv, D]."""
    return store[slot, :, :length].transpose(0, 1).clone()


@dataclass(slots=True)
class PromptPlan:
    """Attention of a prefill over packed prompts, as in training; collects the keys and values for the cache."""

    packed: PackedPlan | Past
    kept: KeyValues = field(default_factory=dict)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, window: int, softcap: float
    ) -> Tensor:
        keys, values = k[0].transpose(0, 1), v[0].transpose(0, 1)
        if isinstance(self.packed, Past):
            keys, values = self.packed.join(layer, keys, values)
            k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
        self.kept[layer] = keys, values
        return self.packed.attend(layer, q, k, v, scaling=scaling, window=window, softcap=softcap)


@dataclass(slots=True)
class TokenPlan:
    """Attention of a decode step: a token for each active row, at positions_A. length: of the longest row with it."""

    cache: Cache
    positions_A: Tensor
    length: int
    masks: dict[int, Tensor] = field(default_factory=dict)
    slots: Tensor | None = None

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, window: int, softcap: float
    ) -> Tensor:
        A, H, _, D = q.shape
        keys, values = self.cache.of(layer, k, v)
        heads = k.shape[1]
        if self.slots is None:
            stretch = torch.arange(A * heads, device=q.device) * self.cache.length
            self.slots = stretch + self.positions_A.repeat_interleave(heads)
        keys.view(-1, D).index_copy_(0, self.slots, k.reshape(-1, D))
        values.view(-1, v.shape[3]).index_copy_(0, self.slots, v.reshape(-1, v.shape[3]))
        q = q.reshape(A, heads, H // heads, D)
        k, v = keys[:A, :, : self.length], values[:A, :, : self.length]
        if not softcap and self.length <= SHORT:
            scores = (q @ k.transpose(-1, -2)).mul_(scaling).add_(self._bias(window, q.dtype))
            out = scores.softmax(-1) @ v
        elif softcap:
            scores = softcap * ((q @ k.transpose(-1, -2)) * (scaling / softcap)).tanh()
            out = (scores + self._bias(window, q.dtype)).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(window, q.dtype), scale=scaling)
        return out.reshape(A, 1, H, v.shape[3])

    def _bias(self, window: int, dtype: torch.dtype) -> Tensor:
        """[A, 1, 1, length]: 0 where a row attends to a key, -inf elsewhere."""
        if window not in self.masks:
            line = torch.arange(self.length, device=self.positions_A.device)[None]
            hidden = line > self.positions_A[:, None]
            if window:
                hidden |= line <= self.positions_A[:, None] - window
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self.masks[window] = bias.masked_fill_(hidden, float("-inf"))[:, None, None]
        return self.masks[window]
