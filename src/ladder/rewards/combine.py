"""Several rewards as one: value = (sum of weight x score) x (product of the gates), with every score in `parts`.

A gate multiplies: a format gate of 0 leaves nothing of the rest. Where one part could not judge an answer the whole
could not: an InfraError wins over an Invalid, and neither becomes 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ladder.contract.rollouts import InfraError, Invalid, Outcome, Rollout, Score
from ladder.rewards.guarded import Guarded


@dataclass(frozen=True, slots=True)
class Part:
    """One component. gate: it multiplies the sum instead of adding to it, and its weight is not read."""

    reward: Guarded
    weight: float = 1.0
    gate: bool = False


@dataclass(frozen=True, slots=True)
class Combine:
    """The combination. With gates alone the sum is 1. Names of the parts must differ."""

    parts: tuple[Part, ...]
    name: str = "combined"

    def __post_init__(self) -> None:
        names = [p.reward.name for p in self.parts]
        assert len(set(names)) == len(names) and names, f"parts need names of their own: {names}"

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        judged = [p.reward(group) for p in self.parts]
        return [self._one([outcomes[i] for outcomes in judged]) for i in range(len(group))]

    def _one(self, outcomes: Sequence[Outcome]) -> Outcome:
        scores = [o for o in outcomes if isinstance(o, Score)]
        if len(scores) < len(outcomes):
            infra = [o for o in outcomes if isinstance(o, InfraError)]
            return infra[0] if infra else next(o for o in outcomes if isinstance(o, Invalid))
        both = list(zip(self.parts, scores, strict=True))
        added = [p.weight * s.value for p, s in both if not p.gate]
        value = sum(added) if added else 1.0
        value *= math.prod(s.value for p, s in both if p.gate)
        return Score(value, {k: v for s in scores for k, v in s.parts.items()})
