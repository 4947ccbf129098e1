"""A weighted combination of rewards: value = (sum of weight x score) x (product of gates), every score in `parts`.

A gate multiplies the sum: a format gate of 0 makes the whole reward 0. An answer that one component could not judge
gets that component's failure (InfraError before Invalid), never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ladder.contract.rollouts import Groups, InfraError, Invalid, Judged, Outcome, Rollout, Score
from ladder.rewards.guarded import Guarded


@dataclass(frozen=True, slots=True)
class Part:
    """One component. gate: its score multiplies the sum instead of adding to it, and its weight is ignored."""

    reward: Guarded
    weight: float = 1.0
    gate: bool = False


@dataclass(frozen=True, slots=True)
class Combine:
    """The combination of `parts`, whose names must differ. With gates only, the sum is taken as 1."""

    parts: tuple[Part, ...]
    name: str = "combined"

    def __post_init__(self) -> None:
        names = [p.reward.name for p in self.parts]
        assert len(set(names)) == len(names) and names, f"the names of the parts must differ: {names}"

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        return self.judge_groups([list(group)])[0]

    def judge_groups(self, groups: Groups) -> Judged:
        """Every part judges all groups, one part after another."""
        judged = [p.reward.judge_groups(groups) for p in self.parts]
        return [
            [self._combine([part[g][i] for part in judged]) for i in range(len(group))]
            for g, group in enumerate(groups)
        ]

    def _combine(self, outcomes: Sequence[Outcome]) -> Outcome:
        """The outcome of one rollout from its outcome under each part."""
        scores = [o for o in outcomes if isinstance(o, Score)]
        if len(scores) < len(outcomes):
            infra_errors = [o for o in outcomes if isinstance(o, InfraError)]
            return infra_errors[0] if infra_errors else next(o for o in outcomes if isinstance(o, Invalid))
        scored_parts = list(zip(self.parts, scores, strict=True))
        terms = [p.weight * s.value for p, s in scored_parts if not p.gate]
        value = sum(terms) if terms else 1.0
        value *= math.prod(s.value for p, s in scored_parts if p.gate)
        parts = {k: v for p, s in scored_parts for k, v in (s.parts or {p.reward.name: s.value}).items()}
        return Score(value, parts)
