"""The upper parts of the page as plain views: tiles, the table, a card for each stage.

A view holds finished texts and drawings; the template only places them. Below them: `curves.py`, `written.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from ladder.report import chart, curves, kinds, story, words
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
    """One figure. value: as it stands in summary.json. wide: it has an interval."""

    label: str
    value: float | None
    text: str
    interval: str
    note: str
    bar: Markup
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One stage of the table: a list of cells for each set. note: what it leaves, where that is no measured model."""

    stage: Stage
    sets: list[list[Cell]]
    seconds: str
    note: str


@dataclass(frozen=True, slots=True)
class Table:
    """names: (set, problems, columns)."""

    names: list[tuple[str, str, list[str]]]
    rows: list[Row]


def tiles(run: Run) -> list[Tile]:
    shown = enumerate(run.sets[: story.SHOWN_SETS])
    wanted = [(s, "accuracy", f"{'Score' if run.graded(s) else 'Right'}, {s}", story.say(run, s), i) for i, s in shown]
    if run.sets:
        wanted.append((run.sets[0], "length", f"Tokens per answer, {run.sets[0]}", words.tokens, 0))
        wanted.append((run.sets[0], "mixed", f"Mixed notations, {run.sets[0]}", words.share, 0))
    return [t for one in wanted if (t := _tile(run, *one))]


def _tile(run: Run, name: str, key: str, title: str, say: chart.Say, tone: int) -> Tile | None:
    values = [(m.name, x) for m in run.models if (x := number(m.figures.get(name), key)) is not None]
    if not values:
        return None
    label = f"{title}: " + ", ".join(f"{n} {say(v)}" for n, v in values)
    if len(run.branches) == 1 and (start := run.branches[0][0]) is not None:
        ends = [x for m in run.branches[0][1] if (x := number(m.figures.get(name), key)) is not None]
        first = number(start.figures.get(name), key)
        if first is not None and ends:
            reached = "–".join(dict.fromkeys(say(x) for x in (min(ends), max(ends))))
            drawn = chart.spark(values, say, label, tone=tone, joined=False)
            return Tile(title, say(first), reached, drawn)
    return Tile(title, say(values[0][1]), say(values[-1][1]), chart.spark(values, say, label, tone=tone))


def table(run: Run) -> Table:
    names, columns = [], {}
    for name in run.sets:
        keys = [k for k in ("accuracy", "length", "mixed") if any(k in s.figures.get(name, {}) for s in run.stages)]
        columns[name] = keys
        names.append((name, problems(run, name), [head(run, name, k) for k in keys]))
    longest = {n: max((number(s.figures.get(n), "length") or 0.0 for s in run.stages), default=0.0) for n in run.sets}
    rows = [
        Row(
            s,
            [[_cell(run, s, n, key, i, longest[n]) for key in columns[n]] for i, n in enumerate(run.sets)],
            words.duration(s.seconds) if s.seconds is not None else "",
            leaves(s),
        )
        for s in run.stages
    ]
    return Table(names, rows)


HEADS = {"accuracy": "right", "length": "tokens", "mixed": "mixed"}


def head(run: Run, name: str, key: str) -> str:
    return "score" if key == "accuracy" and run.graded(name) else HEADS[key]


def leaves(stage: Stage) -> str:
    """What a row says below the stage's name."""
    if stage.kind == "annotate":
        return "pairs, no model"
    if stage.is_scorer:
        return "scores answers, writes none"
    if stage.is_data:
        return "documents, no model"
    return stage.kind if stage.kind != stage.name else ""


def scored(figures: object) -> list[tuple[str, float]]:
    """The parts of a score: (name, mean)."""
    keys = [k for k in figures if str(k).startswith("score/")] if isinstance(figures, dict) else []
    return [(k.removeprefix("score/"), x) for k in sorted(keys) if (x := number(figures, k)) is not None]


def problems(run: Run, name: str) -> str:
    """How many problems a set has."""
    counts = {n for m in run.models if (n := number(m.figures.get(name), "n")) is not None}
    return f"{words.number(max(counts))} problems" if counts else ""


def _cell(run: Run, stage: Stage, name: str, key: str, tone: int, longest: float) -> Cell:
    figures = stage.figures.get(name, {})
    value = number(figures, key)
    greedy = number(figures.get("greedy"), key)
    graded = key == "accuracy" and run.graded(name)
    say = words.tokens if key == "length" else words.score if graded else words.share
    label = head(run, name, key)
    if value is None:
        return Cell(label, None, words.NONE, "", "", Markup(""))
    low, high = (number(figures, end) if key == "accuracy" else None for end in ("low", "high"))
    between = (low, high) if low is not None and high is not None else None
    interval = f"{100 * between[0]:.1f}–{100 * between[1]:.1f}" if between and max(between) <= 1 else ""
    interval = f"{say(between[0])}–{say(between[1])}" if between and graded else interval
    title = f"{stage.name}, {name}: {say(value)} {label}"
    title += f", 95% interval {interval}{'' if graded else '%'}" if interval else ""
    title += f", greedy {say(greedy)}" if greedy is not None else ""
    notes = [f"greedy {say(greedy)}"] if greedy is not None and key == "accuracy" else []
    notes += [" · ".join(f"{n} {words.score(x)}" for n, x in scored(figures))] if graded else []
    most = longest if key == "length" else run.most(name) if key == "accuracy" else 1.0
    drawn = chart.bar(value, most, title, tone=tone, between=between)
    return Cell(label, value, say(value), interval, "\n".join(n for n in notes if n), drawn, key == "accuracy")


# ------------------------------------------------------------ stage by stage


@dataclass(frozen=True, slots=True)
class Card:
    """One stage. moved: (set, what became of its figures, what became of the parts of its score). held: (figure, what
    it is) of pairs that were never trained on."""

    stage: Stage
    number: int
    facts: list[str]
    text: str
    compared: str
    moved: list[tuple[str, list[tuple[str, str, str]], str]]
    held: list[tuple[str, str]]
    charts: list[Chart]
    example: Example | None


STATES = {"missing": "not run yet", "unfinished": "unfinished", "finished": ""}


def cards(run: Run) -> list[Card]:
    return [_card(run, i, s) for i, s in enumerate(run.stages, 1)]


def _card(run: Run, i: int, stage: Stage) -> Card:
    before = run.before(stage) if not stage.is_data else None
    facts = [kinds.origin(run, stage)]
    on_tasks = stage.is_rewarded or stage.is_data
    if on_tasks and (on := kinds.task_words(stage.spec.get("task") or run.recipe.get("task"))):
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
        kinds.what(run, stage),
        before.name if before else "",
        [(n, m, _parts(stage, before, n)) for n in run.sets if (m := _moved(run, stage, before, n))],
        held(stage),
        curves.of_stage(run, stage),
        example(run, stage, before) if (stage.is_rewarded or stage.kind == "preference") and before else None,
    )


def held(stage: Stage) -> list[tuple[str, str]]:
    """What a stage got right of the pairs that it never saw."""
    figures = stage.held_out
    right, n = number(figures, "accuracy"), number(figures, "n")
    if (area := number(figures, "auc")) is not None:
        couples = "of couples of a liked and a disliked held-out answer, its own log-ratio is larger for the liked one"
        return [(words.share(area), couples)]
    if right is None:
        return []
    low, high = number(figures, "low"), number(figures, "high")
    between = f" ({words.share(low)} to {words.share(high)})" if low is not None and high is not None else ""
    of = f" of {words.number(n)} held-out pairs" if n is not None else " of held-out pairs"
    how = "ranked as the annotators did" if stage.is_scorer else "where its own log-ratio prefers the same answer"
    out = [(words.share(right), f"{of.strip()} {how}{between}")]
    if (ece := number(figures, "ece")) is not None:
        out.append((words.number(ece), "calibration error (ECE): how far its certainty is from how often it is right"))
    if (tied := number(figures, "length_correlation")) is not None:
        out.append((words.number(tied), "correlation of its score with the answer's length"))
    return out


def _parts(stage: Stage, before: Stage | None, name: str) -> str:
    """right 0.21 → 0.66 · form 0.06 → 0.99: the parts of a score."""
    old = dict(scored(before.figures.get(name))) if before else {}
    now = scored(stage.figures.get(name))
    return " · ".join(f"{k} {f'{words.score(old[k])} → ' if k in old else ''}{words.score(x)}" for k, x in now)


def _moved(run: Run, stage: Stage, before: Stage | None, name: str) -> list[tuple[str, str, str]]:
    """(label, before, after) of a set's figures; without a model before, only after."""
    out = []
    for key, label, say in (
        ("accuracy", head(run, name, "accuracy"), story.say(run, name)),
        ("length", "tokens", words.tokens),
        ("mixed", "mixed", words.share),
    ):
        value = number(stage.figures.get(name), key)
        start = number(before.figures.get(name), key) if before else None
        if value is not None:
            out.append((label, say(start) if start is not None else "", say(value)))
    return out
