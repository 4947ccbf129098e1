"""What every reward must keep: one finite, sane number per answer. What breaks the rule is never scored 0.

`guard` wraps any callable over a group. It raises: InfraError for the group. It returns the wrong count: Invalid for
the group. It returns None, NaN, a string, something huge: Invalid for that answer. A hang cannot be stopped inside
this process; functions that are not our own run in a child (`ladder.rewards.user`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ladder.contract.rollouts import InfraError, Invalid, Outcome, Rollout, Score

HUGE = 1e6
"""No reward is meant to be larger; what is larger is a bug (a token count, a timestamp, an overflow)."""


def outcome(value: Any, name: str) -> Outcome:
    """The outcome that one returned value stands for: an Outcome, or a number taken as a Score."""
    if isinstance(value, Invalid | InfraError):
        return value
    if isinstance(value, Score):
        for part, number in {"value": value.value, **value.parts}.items():
            why = fault(number)
            if why:
                return Invalid(f"{name}: returned {why} (as {part!r})")
        return value
    why = fault(value)
    if why:
        return Invalid(f"{name}: returned {why}")
    return Score(float(value), {name: float(value)})


def fault(value: Any) -> str | None:
    """What is wrong with a value that should be a finite number; None when nothing is."""
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
    """A reward that keeps the rule whatever the wrapped callable does."""

    inner: Callable[[Sequence[Rollout]], Any]
    name: str

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        try:
            values = self.inner(group)
        # A reward is other people's code: whatever it raises says nothing about the answers it was judging.
        except (Exception, SystemExit) as err:  # noqa: BLE001
            return [InfraError(f"{self.name}: raised {type(err).__name__}: {err}")] * len(group)
        if not isinstance(values, list | tuple):
            return [Invalid(f"{self.name}: returned {type(values).__name__}, not a list")] * len(group)
        if len(values) != len(group):
            return [Invalid(f"{self.name}: returned {len(values)} values for {len(group)} answers")] * len(group)
        return [outcome(v, self.name) for v in values]


def guard(reward: Callable[[Sequence[Rollout]], Any], name: str | None = None) -> Guarded:
    """`reward` with the rule enforced. name: how it is called in `Score.parts` and in messages."""
    if isinstance(reward, Guarded):
        return reward
    if name is None:
        name = reward.name if hasattr(reward, "name") else reward.__name__  # type: ignore[attr-defined]
    return Guarded(reward, str(name))
