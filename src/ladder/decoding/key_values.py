"""Keys and values outside of the key-value cache: of kept samples, of moved sequences, and of a prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ladder.attention.sdpa import masked_attention

KeyValues = dict[int, tuple[Tensor, Tensor]]
"""By layer: keys (rotated, where the model rotates them) and values [T, H_kv, D]."""


def length(cache: KeyValues) -> int:
    """The number of tokens."""
    return len(next(iter(cache.values()))[0])


def joined(caches: Sequence[KeyValues]) -> KeyValues:
    """The keys and values of several sequences, end to end."""
    if len(caches) == 1:
        return caches[0]
    return {i: (_end_to_end(caches, i, 0), _end_to_end(caches, i, 1)) for i in caches[0]}


def _end_to_end(caches: Sequence[KeyValues], layer: int, which: int) -> Tensor:
    return torch.cat([cache[layer][which] for cache in caches])


@dataclass(frozen=True, slots=True)
class Layout:
    """The prompts of R rows among T tokens whose keys and values are stored end to end.

    owner [R]: index of each row's prompt. lengths [p]. line [p, longest]: index of each token of a prompt, the last one
    repeated as padding.
    """

    owner: np.ndarray
    lengths: np.ndarray
    line: np.ndarray

    @classmethod
    def end_to_end(cls, lengths: Sequence[int], owner: np.ndarray) -> Layout:
        """The layout of sequences without shared prefixes."""
        counts = np.array(lengths)
        starts = counts.cumsum() - counts
        within = np.minimum(np.arange(counts.max())[None], counts[:, None] - 1)
        return cls(owner, counts, starts[:, None] + within)


@dataclass(slots=True)
class Past:
    """Attention of a prefill that continues sequences with known keys and values (an `attention.plan.Plan`).

    caches: keys and values of each sequence's first tokens. counts: tokens of each that are read now. Left out:
    batching the attention of several sequences.
    """

    caches: Sequence[KeyValues]
    counts: Sequence[int]
    shared: bool = False
    _seen: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Past:
        """Itself: the caches are on the model's device."""
        return self

    def join(self, layer: int, keys_T: Tensor, values_T: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of whole sequences, end to end, from those of the tokens that are read, [T, H_kv, D]."""
        both = [self._join(layer, which, x) for which, x in enumerate((keys_T, values_T))]
        return both[0], both[1]

    def _join(self, layer: int, which: int, x_T: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for cache, fresh in zip(self.caches, x_T.split(list(self.counts)), strict=True):
            parts += [cache[layer][which].to(x_T.dtype), fresh]
        return torch.cat(parts)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, window: int, softcap: float
    ) -> Tensor:
        """q [1, H, T, D] of the tokens that are read, k and v [1, H_kv, K, D] of whole sequences -> [1, T, H, D]."""
        outs: list[Tensor] = []
        query, key = 0, 0
        for i, (cache, count) in enumerate(zip(self.caches, self.counts, strict=True)):
            whole = length(cache) + count
            q_i = q[:, :, query : query + count]
            k_i, v_i = k[:, :, key : key + whole], v[:, :, key : key + whole]
            visible = self._visible(i, window, q.device)
            outs.append(masked_attention(q_i, k_i, v_i, visible, scaling=scaling, softcap=softcap).transpose(1, 2))
            query, key = query + count, key + whole
        return torch.cat(outs, 1)

    def _visible(self, i: int, window: int, device: torch.device) -> Tensor:
        """bool [1, 1, count, whole]: the keys of sequence i that each of its queries attends to."""
        if (i, window) not in self._seen:
            past, count = length(self.caches[i]), self.counts[i]
            places = torch.arange(past + count, device=device)
            distance = places[past:, None] - places[None]
            seen = distance >= 0
            if window:
                seen &= distance < window
            self._seen[i, window] = seen[None, None]
        return self._seen[i, window]

