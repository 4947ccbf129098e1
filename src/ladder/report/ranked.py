"""Drawings of a reward model's accuracy on held-out pairs: a reliability diagram, and accuracy by margin."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from ladder.report import chart, words

PairBin = Sequence[float]
"""One row of `bins` or `by_margin` in held_out.json."""
LARGEST = 9.0
"""Radius of the dot of the bin with the most pairs; the areas of the others are in proportion to their pairs."""


def reliability(bins: Sequence[PairBin], label: str) -> Markup:
    """A reliability diagram: accuracy against confidence; on the diagonal the model is calibrated.

    bins: (mean confidence, share right, number of pairs).
    """
    width, bottom = chart.WIDTH - chart.LEFT - chart.RIGHT, chart.HEIGHT - chart.BOTTOM
    box = chart.Box(chart.LEFT, chart.TOP, width, bottom - chart.TOP, 0.0, 1.0)
    most_pairs = max(n for *_, n in bins)

    def x(confidence: float) -> float:
        return box.left + width * (min(max(confidence, 0.5), 1.0) - 0.5) / 0.5

    parts = _share_axis(box)
    ticks = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    parts += [chart.text_at(x(c), bottom + 13, f"{c:.0%}", "tick", "middle") for c in ticks]
    parts.append(chart.line_at(x(0.5), box.y(0.5), x(1.0), box.y(1.0), "diagonal"))
    for confidence, right, n in bins:
        radius = round(max(2.0, LARGEST * math.sqrt(n / most_pairs)), 1)
        dot = chart.dot_at(x(confidence), box.y(right), "bin tone0", radius)
        title = f"{words.number(n)} pairs: confidence {words.share(confidence)}, {words.share(right)} right"
        parts.append(Markup("<g>{}<title>{}</title></g>").format(dot, title))
    parts.append(chart.text_at(box.left + width / 2, chart.HEIGHT - 4, "confidence", "axis", "middle"))
    return chart.drawing(chart.WIDTH, chart.HEIGHT, label, parts)


def by_margin(rows: Sequence[PairBin], label: str) -> Markup:
    """Accuracy by margin, a column for each range of margins; the dashed line is chance.

    rows: (lowest margin, highest margin, share right, number of pairs).
    """
    width, bottom = chart.WIDTH - chart.LEFT - chart.RIGHT, chart.HEIGHT - chart.BOTTOM
    box = chart.Box(chart.LEFT, chart.TOP, width, bottom - chart.TOP, 0.0, 1.0)
    pitch, parts = width / len(rows), _share_axis(box)
    for i, (low, high, right, n) in enumerate(rows):
        left, top = box.left + i * pitch, box.y(right)
        column = chart.rect_at(left + 0.18 * pitch, top, 0.64 * pitch, round(bottom - top, 1), "fill tone0")
        margins = f"margin {words.score(low)} to {words.score(high)}"
        title = f"{words.number(n)} pairs, {margins}: {words.share(right)} right"
        parts += [
            Markup("<g>{}<title>{}</title></g>").format(column, title),
            chart.text_at(left + pitch / 2, top - 5, words.share(right), "value", "middle"),
            chart.text_at(left + pitch / 2, bottom + 13, f"{words.score(low)}–{words.score(high)}", "tick", "middle"),
        ]
    parts.append(chart.line_at(box.left, box.y(0.5), box.left + width, box.y(0.5), "diagonal"))
    axis = "difference of the judge's two scores"
    parts.append(chart.text_at(box.left + width / 2, chart.HEIGHT - 4, axis, "axis", "middle"))
    return chart.drawing(chart.WIDTH, chart.HEIGHT, label, parts)


def _share_axis(box: chart.Box) -> list[Markup]:
    """Grid lines and tick labels from 0% to 100%."""
    parts: list[Markup] = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = box.y(share)
        parts.append(chart.line_at(box.left, y, box.left + box.width, y, "grid"))
        parts.append(chart.text_at(box.left - 6, y + 3.5, f"{share:.0%}", "tick", "end"))
    return parts
