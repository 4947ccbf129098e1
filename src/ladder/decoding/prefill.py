"""The prompts of one prefill, packed end to end; prefixes that neighbours share (instructions, examples) are read once.

The next turn of a kept sample is read the same way, after its known keys and values (`key_values.Past`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ladder.attention.packed import PackedPlan
from ladder.decoding.key_values import KeyValues, Layout, Past, length
from ladder.packing import prefix_tree

WORTH = 0.1
"""Least share of all tokens that reading common prefixes once must save: plain prompts need no mask in attention."""


@dataclass(frozen=True, slots=True)
class Prompts(Layout):
    """R rows that continue p prompts, of which T tokens are read.

    tokens, positions [T]. last [p]: the index of each prompt's last token in `tokens`. `line` indexes keys and values:
    of the T tokens, or of whole sequences if the plan is a `Past`.
    """

    tokens: Tensor
    positions: Tensor
    last: Tensor
    plan: PackedPlan | Past

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], owner: np.ndarray) -> Prompts:
        """Prompts that are read from their beginning."""
        arrays = [np.array(p) for p in prompts]
        lengths = np.array([len(p) for p in prompts])
        row = prefix_tree.grown(arrays, _shared(arrays))
        line = np.stack([np.pad(leaf.line(), (0, lengths.max() - leaf.keys), "edge") for leaf in row.leaves])
        return cls(
            owner,
            lengths,
            line,
            torch.from_numpy(row.tokens),
            torch.from_numpy(row.positions),
            torch.from_numpy(line[:, -1].copy()),
            PackedPlan.of(row.segments, len(row.tokens)),
        )

    @classmethod
    def behind(cls, prompts: Sequence[Sequence[int]], caches: Sequence[KeyValues], owner: np.ndarray) -> Prompts:
        """Prompts whose first tokens have their keys and values in `caches`; the others are read."""
        begins = [length(cache) for cache in caches]
        counts = [len(p) - begin for p, begin in zip(prompts, begins, strict=True)]
        tokens = np.concatenate([p[begin:] for p, begin in zip(prompts, begins, strict=True)])
        positions = np.concatenate([np.arange(b, len(p)) for p, b in zip(prompts, begins, strict=True)])
        layout = Layout.end_to_end([len(p) for p in prompts], owner)
        return cls(
            owner,
            layout.lengths,
            layout.line,
            torch.from_numpy(tokens),
            torch.from_numpy(positions),
            torch.from_numpy(np.cumsum(counts) - 1),
            Past(caches, counts),
        )


def _shared(prompts: Sequence[np.ndarray]) -> list[int]:
    """Length of the prefix that each prompt shares with the one before; all 0 if that would save little."""
    forks: list[int] = []
    shared = [0]
    for before, prompt in pairwise(prompts):
        most = min(len(before), len(prompt))
        shared.append(prefix_tree.fork(forks, prefix_tree.common(before, prompt, most), len(prompt)))
    little = sum(shared) < WORTH * sum(map(len, prompts))
    return [0] * len(shared) if little else shared
