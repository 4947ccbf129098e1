"""Reward models as a reward: one scalar-head model, or several as one.

An ensemble is harder to fool than its members: where they were never trained they disagree (Coste et al. 2023,
arXiv:2310.02743, "worst-case" and "uncertainty-weighted" optimisation): the minimum, or mean - penalty * variance.

Scores whole rollouts, token for token, with the scalar head at their end; so it must read the policy's token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ladder.contract.rollouts import Groups, Judged, Outcome, Rollout, Score
from ladder.contract.training import Reference
from ladder.credit.base import to_sample
from ladder.signals.preferences import at_end

Aggregate = Literal["mean", "min", "uncertainty"]


@dataclass(frozen=True, slots=True)
class Member:
    """forward: the frozen scorer's columns. filler: the token id that stands at the place of the score."""

    name: str
    forward: Reference
    filler: int

    def scores(self, rollouts: Sequence[Rollout]) -> Tensor:
        """float64 [answers]."""
        columns = self.forward([at_end(to_sample(r), self.filler) for r in rollouts])
        return torch.stack([c["values"][-1] for c in columns]).double()


@dataclass(frozen=True, slots=True)
class ModelReward:
    """One reward model, or several as one; every member's own score is among the parts when there are several. name:
    beside other rewards, of the part; its members' and their disagreement are then called `name/...`."""

    members: tuple[Member, ...]
    aggregate: Aggregate = "mean"
    penalty: float = 1.0
    name: str = ""

    def judge_groups(self, groups: Groups) -> Judged:
        """The scores of several groups, from one pass of every member over all their rollouts."""
        outcomes = iter(self([r for group in groups for r in group]))
        return [[next(outcomes) for _ in group] for group in groups]

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        """The score of every rollout; they need not be of one prompt."""
        if not group:
            return []
        scores = torch.stack([m.scores(group) for m in self.members])  # [members, answers]
        values = self._together(scores).tolist()
        own = [{self.name: v} if self.name else {} for v in values]
        if len(self.members) == 1:
            return [Score(v, parts) for v, parts in zip(values, own, strict=True)]
        prefix = f"{self.name}/" if self.name else ""
        names = [prefix + name for name in (*(m.name for m in self.members), "disagreement")]
        rows = torch.cat([scores, scores.std(0)[None]]).T.tolist()
        each = zip(values, own, rows, strict=True)
        return [Score(v, parts | dict(zip(names, row, strict=True))) for v, parts, row in each]

    def _together(self, scores: Tensor) -> Tensor:
        match self.aggregate:
            case "mean":
                return scores.mean(0)
            case "min":
                return scores.min(0).values
            case "uncertainty":
                return scores.mean(0) - self.penalty * scores.var(0, unbiased=False)
