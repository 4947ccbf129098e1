"""Draws a run as a PNG or SVG figure for documents: accuracy, answer length and mixed notations after each stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladder.base.errors import UserError
from ladder.report.run import RunFiles, Stage, load, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2a62c8", "#c05a12", "#0d7f72", "#7d4cc0")
INK, SOFT, FAINT = "#1c1d20", "#66686f", "#e3e1da"
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "svg.hashsalt": "ladder",
    "svg.fonttype": "none",
    "axes.edgecolor": SOFT,
    "text.color": INK,
}
PANELS = (("accuracy", "right, %", 100.0), ("length", "tokens per answer", 1.0), ("mixed", "mixed notations, %", 100.0))


def write(run: Path, path: Path) -> Path:
    """Draws a run's figure to `path`, .png or .svg. Raises UserError for a directory without a run or evaluations."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    data = load(run)
    panels = [p for p in PANELS if any(_points(data, name, p[0]) for name in data.sets)]
    if not panels:
        raise UserError("no stage of this run has been evaluated yet, so there is nothing to draw", file=run)
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"a figure must be .png or .svg, not {path.suffix!r}", file=path)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.5 * len(panels), 2.9), layout="constrained", facecolor="white")
        for axes, (key, label, factor) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            graded = key == "accuracy" and any(data.graded(n) for n in data.sets)
            _draw_panel(axes, data, key, *(("score", 1.0) if graded else (label, factor)))
        partial = path.with_name(f".{path.name}")
        metadata = {"Date": None} if path.suffix == ".svg" else None  # no date: the same run gives the same bytes
        figure.savefig(partial, dpi=200, format=path.suffix[1:], metadata=metadata)
        partial.replace(path)
    return path


def _points(run: RunFiles, name: str, key: str) -> list[tuple[int, Stage, float]]:
    """(index among the evaluated models, stage, value of a set's figure) wherever the figure is known."""
    return [(i, m, x) for i, m in enumerate(run.models) if (x := number(m.figures.get(name), key)) is not None]


def _draw_panel(axes: Axes, run: RunFiles, key: str, label: str, factor: float) -> None:
    """One figure `key` of all sets. factor: from the recorded unit to the unit of `label`."""
    for i, name in enumerate(run.sets):
        points, colour = _points(run, name, key), COLOURS[i % len(COLOURS)]
        if not points:
            continue
        xs, ys = [p[0] for p in points], [factor * p[2] for p in points]
        # no line between branches: they do not follow one another
        axes.plot(xs, ys, "o" if run.branches else "o-", color=colour, markersize=4.5, linewidth=1.8, label=name)
        if key == "accuracy":
            errors = _error_bars(points, name, factor)
            axes.errorbar(xs, ys, yerr=errors, fmt="none", ecolor=colour, capsize=2.5, linewidth=1)
            greedy = [(x, number(m.figures[name].get("greedy"), key)) for x, m, _ in points]
            known = [(x, factor * g) for x, g in greedy if g is not None]
            axes.plot([x for x, _ in known], [g for _, g in known], "_", color=colour, markersize=9, alpha=0.7)
    has_greedy = key == "accuracy" and any("greedy" in m.figures.get(s, {}) for m in run.models for s in run.sets)
    axes.set_title(f"{label} (dashes: greedy)" if has_greedy else label, loc="left", fontsize=10, color=INK)
    axes.set_xticks(range(len(run.models)), [m.name for m in run.models])
    axes.set_ylim(0, 104 if factor == 100.0 else None)
    axes.margins(x=0.08)
    axes.tick_params(colors=SOFT, labelcolor=INK, length=3)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(run.sets) > 1 and key == "accuracy":
        axes.legend(frameon=False, loc="best", handlelength=1.4)


def _error_bars(points: Sequence[tuple[int, Stage, float]], name: str, factor: float) -> list[list[float]]:
    """[lengths below, lengths above] of the 95% intervals' error bars; 0 where the interval is unknown."""
    below, above = [], []
    for _, stage, value in points:
        low, high = (number(stage.figures[name], end) for end in ("low", "high"))
        below.append(factor * max(0.0, value - low) if low is not None else 0.0)
        above.append(factor * max(0.0, high - value) if high is not None else 0.0)
    return [below, above]
