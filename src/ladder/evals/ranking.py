"""Evaluation of a reward model on held-out preference pairs: accuracy, calibration, correlation with length.

    accuracy      share of pairs whose chosen answer scores higher; ties count half
    calibration   p = sigmoid(score of chosen - score of rejected) is the probability of the pair under Bradley-Terry;
                  pairs are binned by the confidence max(p, 1 - p), and ECE, the expected calibration error, is the
                  mean distance of a bin's mean confidence from its accuracy, weighted by pairs
    length        Pearson correlation of score and answer length
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ladder.evals.accuracy import wilson

BINS = 10
"""Bins of confidence, from 0.5 to 1."""


@dataclass(slots=True)
class Ranking:
    """The figures of one evaluation. n: pairs. low, high: 95% confidence interval of the accuracy (Wilson). bins: (mean
    confidence, accuracy, pairs) of each. by_margin: (least and greatest margin, accuracy, pairs) of each quarter."""

    n: int
    accuracy: float
    low: float
    high: float
    ece: float
    length_correlation: float
    bins: list[tuple[float, float, int]]
    by_margin: list[tuple[float, float, float, int]]

    def figures(self) -> dict[str, float]:
        """The finite scalar figures, rounded to four decimals."""
        scalars = {
            "accuracy": self.accuracy,
            "low": self.low,
            "high": self.high,
            "ece": self.ece,
            "length_correlation": self.length_correlation,
            "n": float(self.n),
        }
        return {k: round(v, 4) for k, v in scalars.items() if math.isfinite(v)}

    def details(self) -> dict[str, Any]:
        """The figures with the calibration bins and the accuracy by margin."""
        return {**self.figures(), "bins": self.bins, "by_margin": self.by_margin}


def ranking(scores: np.ndarray, lengths: Sequence[int], margins: Sequence[float]) -> Ranking:
    """The figures of P pairs. scores [2P]: chosen, rejected, chosen, ... lengths [2P]: of the answers, in that order.
    margins [P]: how far apart the two sides really are, NaN where unknown."""
    score_margins = scores[0::2] - scores[1::2]
    right = (score_margins > 0) + 0.5 * (score_margins == 0)
    accuracy = float(right.mean())
    low, high = wilson(accuracy, len(score_margins))
    confidence = 1 / (1 + np.exp(-np.abs(score_margins)))
    bins = _calibration_bins(confidence, right)
    ece = sum(n * abs(c - r) for c, r, n in bins) / len(score_margins)
    return Ranking(
        len(score_margins), accuracy, low, high, ece, _correlation(scores, np.asarray(lengths, float)), bins,
        _by_margin(right, np.asarray(margins, float)),
    )


def _calibration_bins(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, pairs) of each bin that is not empty. right: 1, 0, or 0.5 for a tie."""
    bin_index = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = []
    for b in range(BINS):
        in_bin = bin_index == b
        if in_bin.any():
            bins.append((float(confidence[in_bin].mean()), float(right[in_bin].mean()), int(in_bin.sum())))
    return bins


def _by_margin(right: np.ndarray, margins: np.ndarray) -> list[tuple[float, float, float, int]]:
    """Accuracy in four equal parts of the pairs, sorted by size of margin; empty for fewer than four of them."""
    is_known = np.isfinite(margins)
    if is_known.sum() < 4:
        return []
    size, right = np.abs(margins[is_known]), right[is_known]
    order = np.argsort(size, kind="stable")
    return [
        (float(size[part[0]]), float(size[part[-1]]), float(right[part].mean()), len(part))
        for part in np.array_split(order, 4)
    ]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; NaN where one side is constant."""
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
