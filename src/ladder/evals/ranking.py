"""How good a reward model is on pairs that it never saw: accuracy, calibration, what it confuses with quality.

    accuracy      share of pairs whose chosen side scores higher; ties count half
    calibration   p = sigmoid(chosen - rejected) is the model's own chance of being right about a pair; pairs are
                  binned by max(p, 1 - p), and ECE is the mean distance of that from the share that is right
    length        Pearson correlation of score and answer length: what a model has learned about length alone
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ladder.evals.accuracy import wilson

BINS = 10


@dataclass(slots=True)
class Ranking:
    """bins: (mean confidence, share right, pairs). by_margin: (margin from, margin to, accuracy, pairs)."""

    n: int
    accuracy: float
    low: float
    high: float
    ece: float
    length_correlation: float
    bins: list[tuple[float, float, int]]
    by_margin: list[tuple[float, float, float, int]]

    def figures(self) -> dict[str, float]:
        named = {
            "accuracy": self.accuracy,
            "low": self.low,
            "high": self.high,
            "ece": self.ece,
            "length_correlation": self.length_correlation,
            "n": float(self.n),
        }
        return {k: round(v, 4) for k, v in named.items() if math.isfinite(v)}

    def details(self) -> dict[str, Any]:
        return {**self.figures(), "bins": self.bins, "by_margin": self.by_margin}


def ranking(scores: np.ndarray, lengths: Sequence[int], margins: Sequence[float]) -> Ranking:
    """scores [2P]: chosen, rejected, chosen, ... lengths [2P]: of the answers. margins [P]: NaN where unknown."""
    d = scores[0::2] - scores[1::2]
    right = (d > 0) + 0.5 * (d == 0)
    accuracy = float(right.mean())
    low, high = wilson(accuracy, len(d))
    confidence = 1 / (1 + np.exp(-np.abs(d)))
    bins = _binned(confidence, right)
    ece = sum(n * abs(c - r) for c, r, n in bins) / len(d)
    return Ranking(
        len(d), accuracy, low, high, ece, _correlation(scores, np.asarray(lengths, float)), bins,
        _by_margin(right, np.asarray(margins, float)),
    )


def _binned(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float, int]]:
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    made = []
    for b in range(BINS):
        here = place == b
        if here.any():
            made.append((float(confidence[here].mean()), float(right[here].mean()), int(here.sum())))
    return made


def _by_margin(right: np.ndarray, margins: np.ndarray) -> list[tuple[float, float, float, int]]:
    """Accuracy in four equal parts by how far apart the two sides really are."""
    known = np.isfinite(margins)
    if known.sum() < 4:
        return []
    size, right = np.abs(margins[known]), right[known]
    order = np.argsort(size, kind="stable")
    return [
        (float(size[part[0]]), float(size[part[-1]]), float(right[part].mean()), len(part))
        for part in np.array_split(order, 4)
    ]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
