"""A figure over the steps, and what tells a move from noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ladder.diagnose.finding import Curve

WIDTH = 3
"""Steps of a mean: an alarm that waits longer comes too late."""


class Series:
    """One figure of a run; steps where it was not measured are left out."""

    def __init__(self, rows: Sequence[Mapping[str, float | None]], name: str) -> None:
        found = [(int(r["step"] or 0), float(x)) for r in rows if (x := r.get(name)) is not None and math.isfinite(x)]
        self.name = name
        self.steps = [s for s, _ in found]
        self.x = np.array([x for _, x in found])

    def __len__(self) -> int:
        return len(self.x)

    @property
    def curve(self) -> Curve:
        return list(zip(self.steps, map(float, self.x), strict=True))

    @property
    def means(self) -> np.ndarray:
        """Means over `WIDTH` steps; empty when there are fewer."""
        return np.convolve(self.x, np.ones(WIDTH) / WIDTH, "valid") if len(self.x) >= WIDTH else np.array([])

    @property
    def now(self) -> float:
        """The mean of the last steps; NaN when there are too few."""
        return float(self.means[-1]) if len(self.means) else float("nan")

    @property
    def start(self) -> float:
        """The mean of the first steps; NaN when there are too few."""
        return float(self.means[0]) if len(self.means) else float("nan")

    @property
    def noise(self) -> float:
        """The standard deviation of one step about its neighbours' mean, whatever the trend: from second differences
        x[t-1] - 2 x[t] + x[t+1], whose variance is six times that of a step. 0 for fewer than three steps."""
        if len(self.x) < 3:
            return 0.0
        return float(np.sqrt(np.mean(np.diff(self.x, 2) ** 2) / 6))
