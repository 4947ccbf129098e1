"""Some prompts to be read in one pass, laid end to end; what neighbours begin with (instructions, examples) once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ladder.attention.packed import PackedPlan
from ladder.packing import prefix_tree

WORTH = 0.1
"""The part of all tokens that has to be saved: plain prompts need no mask in attention."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """R rows continue p prompts, of which T tokens are read.

    owner [R]: each row's prompt. lengths [p]. tokens, positions [T]. last [p]: the packed place of each prompt's last
    token. line [p, longest]: the packed place of each token, the last one repeated behind the end.
    """

    owner: np.ndarray
    lengths: np.ndarray
    tokens: Tensor
    positions: Tensor
    last: Tensor
    line: np.ndarray
    plan: PackedPlan

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], owner: np.ndarray) -> Prompts:
        read = [np.array(p) for p in prompts]
        lengths = np.array([len(p) for p in prompts])
        row = prefix_tree.grown(read, _shared(read))
        line = np.stack([np.pad(leaf.line(), (0, lengths.max() - leaf.keys), "edge") for leaf in row.leaves])
        return cls(
            owner,
            lengths,
            torch.from_numpy(row.tokens),
            torch.from_numpy(row.positions),
            torch.from_numpy(line[:, -1].copy()),
            line,
            PackedPlan.of(row.segments, len(row.tokens)),
        )


def _shared(prompts: Sequence[np.ndarray]) -> list[int]:
    """How many tokens each has in common with the one before; none at all where that would save little."""
    forks: list[int] = []
    shared = [0]
    for before, prompt in pairwise(prompts):
        most = min(len(before), len(prompt))
        shared.append(prefix_tree.fork(forks, prefix_tree.common(before, prompt, most), len(prompt)))
    little = sum(shared) < WORTH * sum(map(len, prompts))
    return [0] * len(shared) if little else shared
