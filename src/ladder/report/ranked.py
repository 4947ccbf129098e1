"""Drawings of how well a reward model ranks pairs that it never saw: its reliability, and accuracy by margin."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from ladder.report import chart, words

Row = Sequence[float]
LARGEST = 9.0
"""Radius of the bin with most pairs; the others' areas are in proportion."""


def reliability(bins: Sequence[Row], label: str) -> Markup:
    """(mean confidence, share right, pairs) of each bin; on the diagonal, it is as often right as it says."""
    width, bottom = chart.WIDTH - chart.LEFT - chart.RIGHT, chart.HEIGHT - chart.BOTTOM
    box = chart.Box(chart.LEFT, chart.TOP, width, bottom - chart.TOP, 0.0, 1.0)
    most = max(n for *_, n in bins)

    def x(confidence: float) -> float:
        return box.left + width * (min(max(confidence, 0.5), 1.0) - 0.5) / 0.5

    parts = _shares(box)
    sure = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    parts += [chart.text_at(x(c), bottom + 13, f"{c:.0%}", "tick", "middle") for c in sure]
    parts.append(chart.line_at(x(0.5), box.y(0.5), x(1.0), box.y(1.0), "diagonal"))
    for confidence, right, n in bins:
        dot = chart.dot_at(x(confidence), box.y(right), "bin tone0", round(max(2.0, LARGEST * math.sqrt(n / most)), 1))
        title = f"{words.number(n)} pairs: {words.share(confidence)} sure, {words.share(right)} right"
        parts.append(Markup("<g>{}<title>{}</title></g>").format(dot, title))
    parts.append(chart.text_at(box.left + width / 2, chart.HEIGHT - 4, "how sure it is", "axis", "middle"))
    return chart.drawing(chart.WIDTH, chart.HEIGHT, label, parts)


def by_margin(rows: Sequence[Row], label: str) -> Markup:
    """(margin from, margin to, share right, pairs): a column each; the line is what guessing gives."""
    width, bottom = chart.WIDTH - chart.LEFT - chart.RIGHT, chart.HEIGHT - chart.BOTTOM
    box = chart.Box(chart.LEFT, chart.TOP, width, bottom - chart.TOP, 0.0, 1.0)
    pitch, parts = width / len(rows), _shares(box)
    for i, (low, high, right, n) in enumerate(rows):
        at, top = box.left + i * pitch, box.y(right)
        column = chart.rect_at(at + 0.18 * pitch, top, 0.64 * pitch, round(bottom - top, 1), "fill tone0")
        title = f"{words.number(n)} pairs {words.score(low)} to {words.score(high)} apart: {words.share(right)} right"
        parts += [
            Markup("<g>{}<title>{}</title></g>").format(column, title),
            chart.text_at(at + pitch / 2, top - 5, words.share(right), "value", "middle"),
            chart.text_at(at + pitch / 2, bottom + 13, f"{words.score(low)}–{words.score(high)}", "tick", "middle"),
        ]
    parts.append(chart.line_at(box.left, box.y(0.5), box.left + width, box.y(0.5), "diagonal"))
    axis = "how far apart the judge sees the two"
    parts.append(chart.text_at(box.left + width / 2, chart.HEIGHT - 4, axis, "axis", "middle"))
    return chart.drawing(chart.WIDTH, chart.HEIGHT, label, parts)


def _shares(box: chart.Box) -> list[Markup]:
    """Grid and ticks of shares."""
    out: list[Markup] = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = box.y(share)
        out.append(chart.line_at(box.left, y, box.left + box.width, y, "grid"))
        out.append(chart.text_at(box.left - 6, y + 3.5, f"{share:.0%}", "tick", "end"))
    return out
