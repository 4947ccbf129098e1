"""One figure over the steps of a run: its moving mean and its noise, which tell a change from chance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ladder.diagnose.finding import Curve

WIDTH = 3
"""Window of the moving mean, in steps: with a wider one the alarm comes too late."""


class _Column:
    """The steps and finite values of one figure, in arrays that double when they are full."""

    def __init__(self) -> None:
        self.steps, self.values, self.n = np.zeros(64, np.int64), np.zeros(64), 0

    def append(self, step: int, value: float) -> None:
        if self.n == len(self.steps):
            self.steps, self.values = (np.concatenate([x, np.zeros_like(x)]) for x in (self.steps, self.values))
        self.steps[self.n], self.values[self.n] = step, value
        self.n += 1


class History:
    """The figures of the steps so far, by figure: a step is added once, and reading a figure copies nothing.

    rows: of steps, each with its number under "step"; what is None or not finite was not measured.
    """

    def __init__(self, rows: Iterable[Mapping[str, float | None]] = ()) -> None:
        self._columns: dict[str, _Column] = {}
        for row in rows:
            self.append(row)

    def append(self, row: Mapping[str, Any]) -> None:
        step = int(row["step"] or 0)
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._columns.setdefault(name, _Column()).append(step, float(value))

    @property
    def names(self) -> list[str]:
        """Figures that any step has, sorted."""
        return sorted(self._columns)

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values), each [steps that have the figure]."""
        column = self._columns.get(name)
        return (column.steps[: column.n], column.values[: column.n]) if column else (np.zeros(0, np.int64), np.zeros(0))


class Series:
    """The finite values of one figure; steps without one are left out. among: the only steps that count, ascending;
    None for all."""

    def __init__(self, history: History, name: str, among: np.ndarray | None = None) -> None:
        self.name = name
        self.steps, self.x = history.column(name)
        if among is not None:
            chosen = np.isin(self.steps, among, assume_unique=True)
            self.steps, self.x = self.steps[chosen], self.x[chosen]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def curve(self) -> Curve:
        """(step, value) of every step that has one."""
        return list(zip(self.steps.tolist(), self.x.tolist(), strict=True))

    @cached_property
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
