"""Effects over a few seeds: the mean with Student's 95% interval (Student 1908).

The values are one number a seed, not one a problem: the problems of one run share its weights, and an interval over
them would take the chance of training for an effect. With three seeds the interval is wide (4.3 standard errors), as it
must be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""The 97.5% point of Student's t for 1 to 15 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Effect:
    """A mean over seeds with its 95% interval. each: the values of the seeds."""

    mean: float
    low: float
    high: float
    each: tuple[float, ...]

    @property
    def positive(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0

    @property
    def agrees(self) -> bool:
        """Whether every seed has the sign of the mean."""
        return all(math.copysign(1, x) == math.copysign(1, self.mean) for x in self.each)

    def text(self, form: str = "+.3f") -> str:
        """Mean and interval as text, e.g. "+0.120 (+0.043 to +0.197)". form: format of the numbers."""
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"

    def record(self) -> dict[str, Any]:
        """The effect as JSON data."""
        return asdict(self)


def effect(each: Sequence[float]) -> Effect:
    """The mean of `each`, one number a seed, with its interval. Raises ValueError for fewer than two seeds."""
    if len(each) < 2:
        raise ValueError("an interval needs at least two seeds")
    x = np.asarray(each, np.float64)
    half_width = T975[min(len(x) - 1, len(T975)) - 1] * float(x.std(ddof=1)) / math.sqrt(len(x))
    mean = float(x.mean())
    return Effect(mean, mean - half_width, mean + half_width, tuple(map(float, x)))


def difference(a: Sequence[float], b: Sequence[float]) -> Effect:
    """The effect a - b, paired by seed."""
    return effect([x - y for x, y in zip(a, b, strict=True)])
