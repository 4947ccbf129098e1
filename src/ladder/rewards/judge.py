"""Judging the groups of a step: one outcome for each rollout, and the limit on how many may fail to be judged."""

from __future__ import annotations

from ladder.contract.rollouts import (
    Groups,
    InfraError,
    Invalid,
    Judged,
    PerAnswer,
    Reward,
    Score,
)


class RewardFailure(RuntimeError):
    """Too many answers could not be judged for the rest to mean anything."""


def judge(reward: Reward, groups: Groups) -> Judged:
    """The outcomes of every group; in one call where the reward allows it."""
    if not isinstance(reward, PerAnswer):
        return [reward(group) for group in groups]
    found = iter(reward([r for group in groups for r in group]))
    return [[next(found) for _ in group] for group in groups]


def check_judged(judged: Judged, max_failed: float, where: str) -> None:
    """Raises RewardFailure when a larger share of the answers than `max_failed` could not be judged."""
    outcomes = [o for group in judged for o in group]
    failed = [o for o in outcomes if not isinstance(o, Score)]
    if len(failed) > max_failed * len(outcomes):
        whys = sorted({f"{type(o).__name__}: {o.why}" for o in failed if isinstance(o, Invalid | InfraError)})
        raise RewardFailure(
            f"{len(failed)} of {len(outcomes)} answers of {where} could not be judged "
            f"(limit {max_failed:.0%}): {'; '.join(whys[:3])}"
        )
