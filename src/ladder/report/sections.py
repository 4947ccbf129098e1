"""The upper parts of the page as plain views: tiles, the table, a card for each stage.

A view holds finished texts and drawings; the template only places them. Below them: `curves.py`, `written.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from ladder.report import chart, curves, story, words
from ladder.report.curves import Chart
from ladder.report.run import Run, Stage, number
from ladder.report.written import Example, example

# ------------------------------------------------------------ tiles and the table


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure's way through the run."""

    title: str
    first: str
    last: str
    spark: Markup


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure. value: as it stands in summary.json."""

    label: str
    value: float | None
    text: str
    interval: str
    note: str
    bar: Markup


@dataclass(frozen=True, slots=True)
class Row:
    """One stage of the table: a list of cells for each set."""

    stage: Stage
    sets: list[list[Cell]]
    seconds: str


@dataclass(frozen=True, slots=True)
class Table:
    """names: (set, problems, columns)."""

    names: list[tuple[str, str, list[str]]]
    rows: list[Row]


def tiles(run: Run) -> list[Tile]:
    wanted = [(s, "accuracy", f"Right, {s}", words.share, i) for i, s in enumerate(run.sets[: story.SHOWN_SETS])]
    if run.sets:
        wanted.append((run.sets[0], "length", f"Tokens per answer, {run.sets[0]}", words.tokens, 0))
        wanted.append((run.sets[0], "mixed", f"Mixed notations, {run.sets[0]}", words.share, 0))
    return [t for one in wanted if (t := _tile(run, *one))]


def _tile(run: Run, name: str, key: str, title: str, say: chart.Say, tone: int) -> Tile | None:
    values = [(m.name, x) for m in run.models if (x := number(m.figures.get(name), key)) is not None]
    if not values:
        return None
    label = f"{title}: " + ", ".join(f"{n} {say(v)}" for n, v in values)
    return Tile(title, say(values[0][1]), say(values[-1][1]), chart.spark(values, say, label, tone=tone))


def table(run: Run) -> Table:
    names, columns = [], {}
    for name in run.sets:
        keys = [k for k in ("accuracy", "length", "mixed") if any(k in s.figures.get(name, {}) for s in run.stages)]
        columns[name] = keys
        names.append((name, problems(run, name), [HEADS[k] for k in keys]))
    longest = {n: max((number(s.figures.get(n), "length") or 0.0 for s in run.stages), default=0.0) for n in run.sets}
    rows = [
        Row(
            s,
            [[_cell(s, n, key, i, longest[n]) for key in columns[n]] for i, n in enumerate(run.sets)],
            words.duration(s.seconds) if s.seconds is not None else "",
        )
        for s in run.stages
    ]
    return Table(names, rows)


HEADS = {"accuracy": "right", "length": "tokens", "mixed": "mixed"}


def problems(run: Run, name: str) -> str:
    """How many problems a set has."""
    counts = {n for m in run.models if (n := number(m.figures.get(name), "n")) is not None}
    return f"{words.number(max(counts))} problems" if counts else ""


def _cell(stage: Stage, name: str, key: str, tone: int, longest: float) -> Cell:
    figures = stage.figures.get(name, {})
    value = number(figures, key)
    greedy = number(figures.get("greedy"), key)
    say = words.tokens if key == "length" else words.share
    if value is None:
        return Cell(HEADS[key], None, words.NONE, "", "", Markup(""))
    low, high = (number(figures, end) if key == "accuracy" else None for end in ("low", "high"))
    between = (low, high) if low is not None and high is not None else None
    interval = f"{100 * between[0]:.1f}–{100 * between[1]:.1f}" if between and max(between) <= 1 else ""
    title = f"{stage.name}, {name}: {say(value)} {HEADS[key]}"
    title += f", 95% interval {interval}%" if interval else ""
    title += f", greedy {say(greedy)}" if greedy is not None else ""
    note = f"greedy {say(greedy)}" if greedy is not None and key == "accuracy" else ""
    drawn = chart.bar(value, longest if key == "length" else 1.0, title, tone=tone, between=between)
    return Cell(HEADS[key], value, say(value), interval, note, drawn)


# ------------------------------------------------------------ stage by stage


@dataclass(frozen=True, slots=True)
class Card:
    """One stage. moved: (set, what became of its figures)."""

    stage: Stage
    number: int
    facts: list[str]
    text: str
    compared: str
    moved: list[tuple[str, list[tuple[str, str, str]]]]
    charts: list[Chart]
    example: Example | None


STATES = {"missing": "not run yet", "unfinished": "unfinished", "finished": ""}


def cards(run: Run) -> list[Card]:
    return [_card(run, i, s) for i, s in enumerate(run.stages, 1)]


def _card(run: Run, i: int, stage: Stage) -> Card:
    before = run.before(stage) if not stage.is_data else None
    facts = [story.origin(run, stage)]
    if stage.kind in ("rl", "harvest") and (on := story.task_words(stage.spec.get("task") or run.recipe.get("task"))):
        facts.append(f"on {on}")
    if stage.steps is not None:
        facts.append(f"{stage.steps:,} steps")
    if stage.seconds is not None:
        facts.append(words.duration(stage.seconds))
    if STATES[stage.state]:
        facts.append(STATES[stage.state])
    return Card(
        stage,
        i,
        facts,
        story.what(run, stage),
        before.name if before else "",
        [(n, m) for n in run.sets if (m := _moved(stage, before, n))],
        curves.of_stage(run, stage),
        example(run, stage, before) if stage.kind == "rl" and before else None,
    )


def _moved(stage: Stage, before: Stage | None, name: str) -> list[tuple[str, str, str]]:
    """(label, before, after) of a set's figures; without a model before, only after."""
    out = []
    for key, label, say in (
        ("accuracy", "right", words.share),
        ("length", "tokens", words.tokens),
        ("mixed", "mixed", words.share),
    ):
        value = number(stage.figures.get(name), key)
        start = number(before.figures.get(name), key) if before else None
        if value is not None:
            out.append((label, say(start) if start is not None else "", say(value)))
    return out
