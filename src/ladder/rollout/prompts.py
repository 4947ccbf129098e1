"""Some prompts to be read in one pass, laid end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ladder.forest import Segment
from ladder.segments import PackedPlan


@dataclass(frozen=True, slots=True)
class Prompts:
    """R rows continue p prompts of T tokens in all.

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
        lengths = np.array([len(p) for p in prompts])
        starts = np.concatenate([[0], lengths.cumsum()[:-1]])
        total = int(lengths.sum())
        line = np.minimum(np.arange(lengths.max())[None], lengths[:, None] - 1) + starts[:, None]
        return cls(
            owner,
            lengths,
            torch.tensor([t for p in prompts for t in p]),
            torch.from_numpy(np.arange(total) - np.repeat(starts, lengths)),
            torch.from_numpy(starts + lengths - 1),
            line,
            PackedPlan.of([Segment(int(s), int(n)) for s, n in zip(starts, lengths, strict=True)], total),
        )
