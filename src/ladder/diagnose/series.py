"""One figure over the steps of a run: its moving mean and its noise, which tell a change from chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ladder.diagnose.finding import Curve

WIDTH = 3
"""Window of the moving mean, in steps: with a wider one the alarm comes too late."""


class Series:
    """The finite values of one figure; steps without one are left out.

    rows: the figures of each step, with its number under "step". name: of the figure.
    """

    def __init__(self, rows: Sequence[Mapping[str, float | None]], name: str) -> None:
        points = [(int(r["step"] or 0), float(x)) for r in rows if (x := r.get(name)) is not None and math.isfinite(x)]
        self.name = name
        self.steps = [s for s, _ in points]
        self.x = np.array([x for _, x in points])

    def __len__(self) -> int:
        return len(self.x)

    @property
    def curve(self) -> Curve:
        """(step, value) of every step that has one."""
        return list(zip(self.steps, map(float, self.x), strict=True))

    @property
    def means(self) -> np.ndarray:
        """The moving mean over `WIDTH` steps; empty when there are fewer."""
        return np.convolve(self.x, np.ones(WIDTH) / WIDTH, "valid") if len(self.x) >= WIDTH else np.array([])

    @property
    def now(self) -> float:
        """The mean of the last `WIDTH` steps; NaN when there are fewer."""
        return float(self.means[-1]) if len(self.means) else float("nan")

    @property
    def start(self) -> float:
        """The mean of the first `WIDTH` steps; NaN when there are fewer."""
        return float(self.means[0]) if len(self.means) else float("nan")

    @property
    def noise(self) -> float:
        """The standard deviation of one step's value with the trend removed: from second differences
        x[t-1] - 2 x[t] + x[t+1], whose variance is six times that of one value. 0 for fewer than three steps."""
        if len(self.x) < 3:
            return 0.0
        return float(np.sqrt(np.mean(np.diff(self.x, 2) ** 2) / 6))
