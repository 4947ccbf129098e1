"""Charts as inline SVG: curves over steps, bars, sparklines, a funnel. No scripts and no requests.

The page's style sheet sets colours and fonts by class, so one drawing serves the light and the dark theme. Every value
has a tooltip (`<title>`). A drawing is a pure function of its numbers; all text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from ladder.report import words

Say = Callable[[float | None], str]
"""Formats a value, e.g. as a percentage."""
Point = tuple[float, float]
"""(step, value) of a curve, or (x, y) in the drawing."""

MOST_POINTS = 120
"""Largest number of points drawn of one curve; longer curves are averaged over equal intervals."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve. tone: index of its colour in the style sheet."""

    points: Sequence[Point]
    name: str = ""
    tone: int = 0


@dataclass(frozen=True, slots=True)
class Panel:
    """One stage's part of a chart: curves over the stage's steps 1..steps."""

    name: str
    steps: float
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class Box:
    """The plotting area in the drawing's units. low, high: the values at its bottom and top edge."""

    left: float
    top: float
    width: float
    height: float
    low: float
    high: float

    def y(self, value: float) -> float:
        """The vertical position of a value."""
        return self.top + self.height * (1 - (value - self.low) / (self.high - self.low))


# ------------------------------------------------------------ curves over steps

WIDTH, HEIGHT = 360, 196
LEFT, RIGHT, TOP, BOTTOM, GAP = 40, 10, 26, 34, 14
NAMES = 56
"""Width of the right margin for the names of several curves."""


def curves(panels: Sequence[Panel], label: str, say: Say = words.number, *, ground: float | None = 0.0) -> Markup:
    """Panels side by side with common scales of steps and values. ground: a value that the scale must include."""
    values = [y for p in panels for line in p.lines for _, y in thin(line.points)]
    if not values:
        return Markup("")
    low, high, ticks = scale(values, ground)
    several = any(len(p.lines) > 1 for p in panels)
    available = WIDTH - LEFT - (NAMES if several else RIGHT) - GAP * (len(panels) - 1)
    total_steps = sum(p.steps for p in panels)
    # widths are in proportion to steps, except that a short stage keeps a minimum for its labels
    shares = [max(p.steps / total_steps, 0.5 / len(panels)) for p in panels]
    parts, left = [_value_axis(low, high, ticks, say)], float(LEFT)
    for panel, share in zip(panels, shares, strict=True):
        width = available * share / sum(shares)
        box = Box(left, TOP, width, HEIGHT - TOP - BOTTOM, low, high)
        parts.append(_draw_panel(panel, box, say, heading=len(panels) > 1, named=several and panel is panels[-1]))
        left += width + GAP
    parts.append(text_at(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 4, "step", "axis", "middle"))
    return drawing(WIDTH, HEIGHT, label, parts)


def thin(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS points: means over equal intervals, each at the last step of its interval."""
    n = len(points)
    if n <= MOST_POINTS:
        return list(points)
    bounds = [round(i * n / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    intervals = [points[a:b] for a, b in pairwise(bounds)]
    return [(p[-1][0], math.fsum(y for _, y in p) / len(p)) for p in intervals]


def scale(values: Sequence[float], ground: float | None) -> tuple[float, float, list[float]]:
    """(lowest, highest, ticks) of an axis for the values, all of them round numbers."""
    low, high = min(values), max(values)
    if ground is not None:
        low, high = min(low, ground), max(high, ground)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = (low - 0.5, high + 0.5) if ground is None else (low, high + (abs(high) or 1.0))
    step = _round_up((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, last * step, [i * step for i in range(first, last + 1)]


def _round_up(x: float) -> float:
    """The smallest number of at least x that is 1, 2, 2.5, 5 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(x))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= x * (1 - 1e-9))


def _value_axis(low: float, high: float, ticks: Sequence[float], say: Say) -> Markup:
    box = Box(LEFT, TOP, 0, HEIGHT - TOP - BOTTOM, low, high)
    return Markup("").join(text_at(LEFT - 6, box.y(t) + 3.5, _tick(t, say), "tick", "end") for t in ticks)


def _tick(value: float, say: Say) -> str:
    if say is words.share and 0 <= value <= 1:
        return f"{100 * value:.3g}%"
    return words.number(round(value, 10))


def _draw_panel(panel: Panel, box: Box, say: Say, *, heading: bool, named: bool) -> Markup:
    """One stage: grid, heading, step axis and curves. named: write the curves' names on the right."""
    _, _, ticks = scale([box.low, box.high], None)
    right, bottom = box.left + box.width, box.top + box.height
    parts = [line_at(box.left, box.y(t), right, box.y(t), "grid") for t in ticks if box.low <= t <= box.high]
    parts.append(line_at(box.left, bottom, right, bottom, "base"))
    if heading:
        parts.append(text_at(box.left + box.width / 2, box.top - 12, panel.name, "head", "middle"))
    parts += _step_axis(panel.steps, box)
    ends: list[tuple[float, Line]] = []
    for line in panel.lines:
        points = thin(line.points)
        if points:
            parts.append(_draw_curve(points, line, panel, box, say, alone=len(panel.lines) == 1))
            ends.append((box.y(points[-1][1]), line))
    if named:
        parts += [text_at(right + 6, y + 4, line.name, f"name tone{line.tone}", "start") for y, line in apart(ends)]
    return Markup("").join(parts)


def _step_axis(steps: float, box: Box) -> list[Markup]:
    """Labels of step 0, of the last step and, in a wide panel, of round numbers between them."""
    bottom = box.top + box.height + 13
    labels = [(box.left, 0.0, "start"), (box.left + box.width, steps, "end")]
    if box.width > 5 * LABEL:
        _, _, ticks = scale([0, steps], 0)
        labels += [(box.left + box.width * t / steps, t, "middle") for t in ticks if 0 < t < 0.88 * steps]
    return [text_at(x, bottom, words.number(t), "tick", anchor) for x, t, anchor in labels]


def _draw_curve(points: list[Point], line: Line, panel: Panel, box: Box, say: Say, *, alone: bool) -> Markup:
    positions = [(box.left + box.width * x / panel.steps, box.y(y)) for x, y in points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in positions)
    parts = [Markup('<path class="curve tone{}" d="{}"/>').format(line.tone, path)]
    if len(points) <= 12:
        parts += [dot_at(x, y, f"mark tone{line.tone}", 2.4) for x, y in positions]
    if alone:
        parts.append(_end_labels(points, positions, box, say))
    parts += _tooltips(points, positions, line, panel, box, say)
    return Markup("").join(parts)


def _end_labels(points: list[Point], positions: list[Point], box: Box, say: Say) -> Markup:
    """The last value beside the curve's end and, if both fit, the first value beside its start."""
    labels = [(positions[-1], points[-1][1], "end")]
    if len(positions) > 1 and positions[-1][0] - positions[0][0] > 2 * LABEL:
        labels.append((positions[0], points[0][1], "start"))
    placed = [(end, _label_height(end, positions, box), value, anchor) for end, value, anchor in labels]
    return Markup("").join(text_at(end[0], y, say(v), "value", anchor) for end, y, v, anchor in placed if y is not None)


LABEL = 40
"""Approximate width of a value's label."""
FAR = 30
"""Largest vertical distance of a label from its curve's end; a label further away is not drawn."""


def _label_height(end: Point, positions: list[Point], box: Box) -> float | None:
    """The vertical position of a label at a curve's end, clear of the curve: the nearer of above and below.

    None when neither lies inside the box and within FAR.
    """
    nearby = [y for x, y in positions if abs(x - end[0]) <= LABEL]
    above, below = min(nearby) - 6, max(nearby) + 14
    choices = [(end[1] - above, above)] if above >= box.top + 1 else []
    choices += [(below - end[1] - 6, below)] if below <= box.top + box.height - 2 else []
    distance, y = min(choices, default=(FAR + 1, 0.0))
    return y if distance <= FAR else None


def _tooltips(
    points: list[Point], positions: list[Point], line: Line, panel: Panel, box: Box, say: Say
) -> list[Markup]:
    """For every point an invisible strip that on hover shows the point and its value."""
    parts, edges = [], [(a[0] + b[0]) / 2 for a, b in pairwise(positions)]
    starts, ends = [box.left, *edges], [*edges, box.left + box.width]
    for (step, value), (x, y), start, end in zip(points, positions, starts, ends, strict=True):
        name = f"{panel.name} {line.name}".strip()
        title = f"{name}, step {words.number(step)}: {say(value)}"
        strip = rect_at(start, box.top, max(end - start, 0.1), box.height, "")
        dot = dot_at(x, y, f"tone{line.tone}", 3)
        parts.append(Markup('<g class="hover">{}{}<title>{}</title></g>').format(strip, dot, title))
    return parts


def apart(ends: list[tuple[float, Line]], least: float = 13) -> list[tuple[float, Line]]:
    """Label positions moved down until neighbours are at least `least` apart."""
    spaced: list[tuple[float, Line]] = []
    for y, line in sorted(ends, key=lambda e: e[0]):
        spaced.append((max(y, spaced[-1][0] + least) if spaced else y, line))
    return spaced


# ------------------------------------------------------------ bars, sparklines, the funnel


def bar(value: float, most: float, title: str, *, tone: int = 0, between: tuple[float, float] | None = None) -> Markup:
    """A horizontal bar for a table's cell. most: the value at full length. between: an interval drawn over its end."""
    width, height = 100, 12

    def x(v: float) -> float:
        return width * min(max(v / most if most > 0 else 0.0, 0.0), 1.0)

    parts = [
        rect_at(0, 0, width, height, "rail"),
        rect_at(0, 0, x(value), height, f"fill tone{tone}"),
    ]
    if between is not None:
        low, high = map(x, between)
        parts += [line_at(low, 6, high, 6, "whisker"), *[line_at(at, 2.5, at, 9.5, "whisker") for at in (low, high)]]
    parts.append(Markup("<title>{}</title>").format(title))
    return drawing(width, height, title, parts, extra="bar", stretch=True)


def spark(values: Sequence[tuple[str, float]], say: Say, label: str, *, tone: int = 0, joined: bool = True) -> Markup:
    """A sparkline of (stage, value). joined: a curve through the stages; else dots and the level of the first stage."""
    width, height, pad = 220, 40, 5
    high = max((v for _, v in values), default=0.0) or 1.0
    low = min(0.0, *(v for _, v in values)) if values else 0.0
    pitch = (width - 2 * pad) / max(1, len(values) - 1)
    box = Box(pad, pad, width - 2 * pad, height - 2 * pad, low, high)
    positions = [(pad + i * pitch, box.y(v)) for i, (_, v) in enumerate(values)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in positions)
    parts = [Markup('<path class="curve tone{}" d="{}"/>').format(tone, path)]
    if not joined:
        level = positions[0][1] if positions else 0.0
        parts = [line_at(pad, level, width - pad, level, "diagonal")] if positions else []
    for (name, value), (x, y) in zip(values, positions, strict=True):
        dot = dot_at(x, y, f"mark tone{tone}", 2.6)
        parts.append(Markup("<g>{}<title>{}: {}</title></g>").format(dot, name, say(value)))
    return drawing(width, height, label, parts, extra="spark")


def funnel(rows: Sequence[tuple[str, str, float]], label: str) -> Markup:
    """A bar chart of (name, explanation, count) from top to bottom, each bar in proportion to the first count."""
    if not rows:
        return Markup("")
    pitch, left, full_width = 30, 78, 176
    first, parts = rows[0][2] or 1.0, []
    for i, (name, explanation, count) in enumerate(rows):
        y, width = i * pitch + 4, full_width * min(1.0, count / first)
        parts += [
            text_at(left - 8, y + 15, name, "head", "end"),
            Markup("<g>{}<title>{}</title></g>").format(
                rect_at(left, y, max(width, 1), 21, "fill tone0"), f"{name}: {words.number(count)}. {explanation}"
            ),
            Markup('<text class="value" x="{:.1f}" y="{}">{}<tspan class="of" dx="6">{}</tspan></text>').format(
                left + width + 6, y + 15, words.number(count), words.share(count / first) if i else ""
            ),
        ]
    return drawing(WIDTH, len(rows) * pitch + 4, label, parts)


# ------------------------------------------------------------ SVG elements


def drawing(
    width: float, height: float, label: str, parts: Sequence[Markup], extra: str = "", stretch: bool = False
) -> Markup:
    """An `<svg>` element. label: its text for screen readers. stretch: fill the cell without keeping proportions."""
    aspect_ratio = Markup(' preserveAspectRatio="none"') if stretch else Markup("")
    return Markup('<svg class="chart {}" viewBox="0 0 {} {}" role="img" aria-label="{}"{}>{}</svg>').format(
        extra, width, height, label, aspect_ratio, Markup("").join(parts)
    )


def text_at(x: float, y: float, text: str, cls: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(cls, x, y, anchor, text)


def line_at(x1: float, y1: float, x2: float, y2: float, cls: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(cls, x1, y1, x2, y2)


def rect_at(x: float, y: float, width: float, height: float, cls: str) -> Markup:
    template = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"/>')
    return template.format(cls, x, y, width, height)


def dot_at(x: float, y: float, cls: str, r: float) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(cls, x, y, r)
