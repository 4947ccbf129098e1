"""A key-value cache for rows that share prompts: a prompt's keys and values are stored once, own tokens by row.

Keys are stored with tokens as the last dimension, as the matrix products read them. Rows are in the order in which they
were admitted. Attention over the store is in `llama_torch.py` (torch's operators) and `llama_cpu.py` (C).

Left out: paging: the room for own tokens doubles when it is full, and prompts are padded to the longest in use.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ladder.decoding.key_values import KeyValues, Layout

ROOM = 32
"""Initial room for a row's own tokens."""


class Store:
    """The keys and values of `slots` rows. Tensors: prompts' keys [p * H, D, P] and values [p * H, P, D], answers' keys
    [slots * H, D, room] and values [slots * H, room, D], with H key heads; P and room are multiples of `align`."""

    def __init__(self, layers: int, heads: int, width: int, slots: int, like: Tensor, align: int = 1) -> None:
        """like: a tensor with the type and device of the cache."""
        self.heads, self.width, self.slots, self.like, self.align = heads, width, slots, like, align
        self.prompts: list[tuple[Tensor, Tensor]] = []
        self.prompt_lengths = np.zeros(0, np.int64)  # [p]
        self.owner = np.zeros(0, np.int64)  # [A] each row's prompt
        self.room = self._aligned(ROOM)
        self.own = self._own(layers)

    def changed(self) -> None:
        """The rows or their addresses have changed: subclasses discard what they prepared for the old ones."""

    def _aligned(self, n: int) -> int:
        return -(-n // self.align) * self.align

    def _own(self, layers: int) -> list[tuple[Tensor, Tensor]]:
        """Zeroed keys and values for every row's own tokens, in one allocation."""
        n = self.slots * self.heads
        flat = self._fresh(layers * 2 * n * self.width * self.room).view(layers, 2, -1)
        return [(x[0].view(n, self.width, self.room), x[1].view(n, self.room, self.width)) for x in flat]

    def _fresh(self, numbers: int) -> Tensor:
        return self.like.new_zeros(numbers)

    def fill(self, cache: KeyValues, layout: Layout, first: int) -> None:
        """Adds prompts with their keys and values, and the rows first, first + 1, ... that continue them."""
        line = torch.from_numpy(layout.line).to(self.like.device)
        width = self._aligned(line.shape[1])
        if len(self.prompt_lengths):
            width = max(self.prompts[0][0].shape[2], width)
        read = [(_heads(k, line).to(self.like.dtype), _heads(v, line).to(self.like.dtype)) for k, v in cache.values()]
        fresh = [(_wide(k.transpose(1, 2), 2, width), _wide(v, 1, width)) for k, v in read]
        if len(self.prompt_lengths):
            fresh = [
                (torch.cat([_wide(old_k, 2, width), new_k]), torch.cat([_wide(old_v, 1, width), new_v]))
                for (old_k, old_v), (new_k, new_v) in zip(self.prompts, fresh, strict=True)
            ]
        assert first == len(self.owner), "rows are added behind the present ones"
        self.owner = np.concatenate([self.owner, layout.owner + len(self.prompt_lengths)])
        self.prompt_lengths = np.concatenate([self.prompt_lengths, layout.lengths])
        self.prompts = [(k.contiguous(), v.contiguous()) for k, v in fresh]
        self.changed()

    def extract(self, slot: int, length: int) -> KeyValues:
        """A copy of the keys and values of a row's first `length` tokens, prompt and own tokens together."""
        at, prompt = slot * self.heads, int(self.owner[slot]) * self.heads
        shared = int(self.prompt_lengths[self.owner[slot]])
        own = length - shared
        cache: KeyValues = {}
        for layer, ((prompt_k, prompt_v), (own_k, own_v)) in enumerate(zip(self.prompts, self.own, strict=True)):
            rows, prompts = slice(at, at + self.heads), slice(prompt, prompt + self.heads)
            keys = torch.cat([prompt_k[prompts, :, :shared], own_k[rows, :, :own]], 2)  # [H, D, length]
            values = torch.cat([prompt_v[prompts, :shared], own_v[rows, :own]], 1)  # [H, length, D]
            cache[layer] = keys.permute(2, 0, 1).contiguous(), values.transpose(0, 1).contiguous()
        return cache

    def keep(self, kept: np.ndarray, positions_A: np.ndarray) -> None:
        """Moves the rows `kept`, at positions_A, to slots 0, 1, ...; drops other rows and prompts without rows."""
        self.owner = self.owner[kept]
        to = np.flatnonzero(kept != np.arange(len(kept)))
        if len(to):
            length = int((positions_A - self.prompt_lengths[self.owner]).max())
            origin, to_ = self._rows(kept[to]), self._rows(to)
            for keys, values in self.own:
                keys[to_, :, :length] = keys[origin, :, :length]
                values[to_, :length] = values[origin, :length]
        used = np.unique(self.owner)
        if len(used) < len(self.prompt_lengths):
            self.prompt_lengths = self.prompt_lengths[used]
            longest = self._aligned(int(self.prompt_lengths.max()) if len(used) else 0)
            rows = self._rows(used)
            self.prompts = [
                (k[rows][:, :, :longest].contiguous(), v[rows][:, :longest].contiguous()) for k, v in self.prompts
            ]
            self.owner = np.searchsorted(used, self.owner)
        self.changed()

    def _rows(self, of: np.ndarray) -> Tensor:
        """Flat indices (row and head) of slots or prompts."""
        flat = of[:, None] * self.heads + np.arange(self.heads)
        return torch.from_numpy(flat.ravel()).to(self.like.device)

    def places(self, positions_A: np.ndarray) -> np.ndarray:
        """The place of each row's new token among its own tokens; enlarges the room if needed."""
        own = positions_A - self.prompt_lengths[self.owner]
        if int(own.max()) >= self.room:
            self._grow(int(own.max()) + 1)
        return own

    def _grow(self, needed: int) -> None:
        before, old = self.own, self.room
        self.room = self._aligned(max(needed, 2 * old))
        self.own = self._own(len(before))
        for (keys, values), (old_keys, old_values) in zip(self.own, before, strict=True):
            keys[:, :, :old], values[:, :old] = old_keys, old_values
        self.changed()


def _heads(x: Tensor, line: Tensor) -> Tensor:
    """[T, H, D] at line [p, P] -> [p * H, P, D]."""
    picked = x.index_select(0, line.flatten()).view(*line.shape, *x.shape[1:])  # [p, P, H, D]
    return picked.transpose(1, 2).reshape(-1, line.shape[1], x.shape[2])


def _wide(x: Tensor, dim: int, width: int) -> Tensor:
    """Pads dimension `dim` of a three-dimensional x with zeros up to `width`."""
    room = width - x.shape[dim]
    return x if not room else F.pad(x, (0, room) if dim == 2 else (0, 0, 0, room))
