"""Reward models as a reward: one model with a scalar head, or an ensemble of several.

An ensemble is harder to over-optimise than its members, because they disagree on inputs unlike their training data
(Coste et al. 2023, arXiv:2310.02743, "worst-case" and "uncertainty-weighted" optimisation): its score is the minimum,
or mean - penalty * variance.

A rollout is scored by its token ids, with the scalar head at its end; so a reward model must have the policy's
tokenizer.
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
    """One reward model. forward: computes the frozen model's columns. filler: the token id that is appended to a
    rollout at the position of the score (`signals.preferences.at_end`)."""

    name: str
    forward: Reference
    filler: int

    def scores(self, rollouts: Sequence[Rollout]) -> Tensor:
        """The score of every rollout, float64 [rollouts]."""
        columns = self.forward([at_end(to_sample(r), self.filler) for r in rollouts])
        return torch.stack([c["values"][-1] for c in columns]).double()


@dataclass(frozen=True, slots=True)
class ModelReward:
    """One reward model, or an ensemble. Of an ensemble, every member's score and their disagreement (standard
    deviation) are among the parts. aggregate: how the members' scores are combined. penalty: of the variance. name: of
    the part, if the reward is one of several; the parts of an ensemble are then called `name/...`."""

    members: tuple[Member, ...]
    aggregate: Aggregate = "mean"
    penalty: float = 1.0
    name: str = ""

    def judge_groups(self, groups: Groups) -> Judged:
        """The scores of several groups, from one forward pass of every member over all their rollouts."""
        outcomes = iter(self([r for group in groups for r in group]))
        return [[next(outcomes) for _ in group] for group in groups]

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        """The score of every rollout; the rollouts may be of several prompts."""
        if not group:
            return []
        scores = torch.stack([m.scores(group) for m in self.members])  # [members, rollouts]
        values = self._combine(scores).tolist()
        named_parts = [{self.name: v} if self.name else {} for v in values]
        if len(self.members) == 1:
            return [Score(v, parts) for v, parts in zip(values, named_parts, strict=True)]
        prefix = f"{self.name}/" if self.name else ""
        names = [prefix + name for name in (*(m.name for m in self.members), "disagreement")]
        rows = torch.cat([scores, scores.std(0)[None]]).T.tolist()
        per_rollout = zip(values, named_parts, rows, strict=True)
        return [Score(v, parts | dict(zip(names, row, strict=True))) for v, parts, row in per_rollout]

    def _combine(self, scores: Tensor) -> Tensor:
        """The ensemble's score of every rollout: [members, rollouts] -> [rollouts]."""
        match self.aggregate:
            case "mean":
                return scores.mean(0)
            case "min":
                return scores.min(0).values
            case "uncertainty":
                return scores.mean(0) - self.penalty * scores.var(0, unbiased=False)
