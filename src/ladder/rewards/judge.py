"""Judges the groups of a step: one outcome per rollout, and a limit on the share of rollouts without a score."""

from __future__ import annotations

from ladder.base.errors import UserError
from ladder.contract.rollouts import Groups, InfraError, Invalid, Judged, JudgesGroups, Reward, Score


class RewardFailure(UserError):
    """More rollouts could not be judged than the run allows."""


def judge(reward: Reward, groups: Groups) -> Judged:
    """The outcomes of every group; a reward that judges several groups at once (`JudgesGroups`) is called once."""
    if isinstance(reward, JudgesGroups):
        return reward.judge_groups(groups)
    return [reward(group) for group in groups]


def check_judged(judged: Judged, max_failed: float, where: str) -> None:
    """Raises RewardFailure if more than the share `max_failed` of the answers has no score. where: of the message."""
    outcomes = [o for group in judged for o in group]
    failed = [o for o in outcomes if not isinstance(o, Score)]
    if len(failed) > max_failed * len(outcomes):
        reasons = sorted({f"{type(o).__name__}: {o.why}" for o in failed if isinstance(o, Invalid | InfraError)})
        raise RewardFailure(
            f"{len(failed)} of {len(outcomes)} answers of {where} could not be judged "
            f"(limit {max_failed:.0%}): {'; '.join(reasons[:3])}"
        )
