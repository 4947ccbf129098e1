"""Validation of reward functions: one finite number of at most `HUGE` per rollout. A violation is never scored 0.

`guard` wraps any callable over a group of rollouts. If it raises, the whole group is an InfraError. If it returns the
wrong number of values, the whole group is Invalid. A value that is None, NaN, a string or too large makes that rollout
Invalid. Left out: a deadline, because a hang cannot be interrupted within the process; users' functions run in a child
process (`ladder.rewards.user`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ladder.contract.rollouts import Groups, InfraError, Invalid, Judged, JudgesGroups, Outcome, Rollout, Score

HUGE = 1e6
"""The largest absolute reward accepted; a larger one is a bug (a token count, a timestamp, an overflow)."""


def outcome(value: Any, name: str) -> Outcome:
    """The outcome of one value that a reward named `name` returned: an Outcome is checked, a number becomes a Score."""
    if isinstance(value, Invalid | InfraError):
        return value
    if isinstance(value, Score):
        for part, number in {"value": value.value, **value.parts}.items():
            problem = fault(number)
            if problem:
                return Invalid(f"{name}: returned {problem} (as {part!r})")
        return value
    problem = fault(value)
    if problem:
        return Invalid(f"{name}: returned {problem}")
    return Score(float(value), {name: float(value)})


def fault(value: Any) -> str | None:
    """Why a value is not an acceptable reward, as the end of a sentence; None if it is one."""
    if not isinstance(value, Real):
        return f"{value!r:.60} ({type(value).__name__}), not a number"
    try:
        number = float(value)
    except OverflowError:  # an int beyond any float
        number = math.inf
    if not math.isfinite(number):
        return f"{number}, not a finite number"
    return f"{number:g}, more than {HUGE:g}" if abs(number) > HUGE else None


@dataclass(frozen=True, slots=True)
class Guarded:
    """A reward whose outcomes are valid whatever the wrapped callable `inner` does."""

    inner: Callable[[Sequence[Rollout]], Any]
    name: str

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        try:
            values = self.inner(group)
        # A reward may be foreign code: whatever it raises says nothing about the answers that it was judging.
        except (Exception, SystemExit) as err:  # noqa: BLE001
            return [InfraError(f"{self.name}: raised {type(err).__name__}: {err}")] * len(group)
        return self._outcomes(values, group)

    def judge_groups(self, groups: Groups) -> Judged:
        """The outcomes of several groups, in one call of the reward if it takes several (`JudgesGroups`)."""
        if not isinstance(self.inner, JudgesGroups):
            return [self(group) for group in groups]
        try:
            judged = self.inner.judge_groups(groups)
        except (Exception, SystemExit) as err:  # noqa: BLE001  as above
            return [[InfraError(f"{self.name}: raised {type(err).__name__}: {err}")] * len(group) for group in groups]
        return [self._outcomes(values, group) for values, group in zip(judged, groups, strict=True)]

    def _outcomes(self, values: Any, group: Sequence[Rollout]) -> list[Outcome]:
        """The outcomes that a reward's return value stands for."""
        if not isinstance(values, list | tuple):
            return [Invalid(f"{self.name}: returned {type(values).__name__}, not a list")] * len(group)
        if len(values) != len(group):
            return [Invalid(f"{self.name}: returned {len(values)} values for {len(group)} answers")] * len(group)
        return [outcome(v, self.name) for v in values]


def guard(reward: Callable[[Sequence[Rollout]], Any], name: str | None = None) -> Guarded:
    """`reward` with its outcomes validated. name: as in `Score.parts` and in messages; default: the reward's own."""
    if isinstance(reward, Guarded):
        return reward
    if name is None:
        name = reward.name if hasattr(reward, "name") else reward.__name__  # type: ignore[attr-defined]
    return Guarded(reward, str(name))
