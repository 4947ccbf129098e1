"""Views of the page's upper sections: tiles, the table of stages, a card for each stage.

A view holds finished texts and drawings; the template only lays them out. The lower sections: `curves.py`,
`written.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from ladder.report import chart, curves, kinds, story, words
from ladder.report.curves import Chart
from ladder.report.run import RunFiles, Stage, number
from ladder.report.written import AnswerExample, example

# ------------------------------------------------------------ tiles and the table


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure at the run's first and last model, with a sparkline of the stages."""

    title: str
    first: str
    last: str
    spark: Markup


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of the table. value: as in summary.json. bar: its drawing. wide: reserves room for an interval."""

    label: str
    value: float | None
    text: str
    interval: str
    note: str
    bar: Markup
    wide: bool = False


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of the table. sets: for each evaluation set, its cells. note: the stage's kind, or what it produces."""

    stage: Stage
    sets: list[list[Cell]]
    seconds: str
    note: str


@dataclass(frozen=True, slots=True)
class Table:
    """The table of stages. names: (evaluation set, number of problems, column heads)."""

    names: list[tuple[str, str, list[str]]]
    rows: list[StageRow]


def tiles(run: RunFiles) -> list[Tile]:
    """Tiles for the accuracy on the first sets, and for answer length and mixed notations on the first set."""
    sets = enumerate(run.sets[: story.SHOWN_SETS])
    specs = [(s, "accuracy", f"{'Score' if run.graded(s) else 'Right'}, {s}", story.say(run, s), i) for i, s in sets]
    if run.sets:
        specs.append((run.sets[0], "length", f"Tokens per answer, {run.sets[0]}", words.tokens, 0))
        specs.append((run.sets[0], "mixed", f"Mixed notations, {run.sets[0]}", words.share, 0))
    return [tile for spec in specs if (tile := _tile(run, *spec))]


def _tile(run: RunFiles, name: str, key: str, title: str, say: chart.Say, tone: int) -> Tile | None:
    """The tile of one figure `key` of a set. With one branching point: its start against the range of the ends."""
    values = [(m.name, x) for m in run.models if (x := number(m.figures.get(name), key)) is not None]
    if not values:
        return None
    label = f"{title}: " + ", ".join(f"{n} {say(v)}" for n, v in values)
    if len(run.branches) == 1 and (start := run.branches[0][0]) is not None:
        ends = [x for m in run.branches[0][1] if (x := number(m.figures.get(name), key)) is not None]
        first = number(start.figures.get(name), key)
        if first is not None and ends:
            end_range = "–".join(dict.fromkeys(say(x) for x in (min(ends), max(ends))))
            sparkline = chart.spark(values, say, label, tone=tone, joined=False)
            return Tile(title, say(first), end_range, sparkline)
    return Tile(title, say(values[0][1]), say(values[-1][1]), chart.spark(values, say, label, tone=tone))


def table(run: RunFiles) -> Table:
    """The table of all stages with their figures on all evaluation sets."""
    names, columns = [], {}
    for name in run.sets:
        keys = [k for k in ("accuracy", "length", "mixed") if any(k in s.figures.get(name, {}) for s in run.stages)]
        columns[name] = keys
        names.append((name, problems(run, name), [head(run, name, k) for k in keys]))
    longest = {n: max((number(s.figures.get(n), "length") or 0.0 for s in run.stages), default=0.0) for n in run.sets}
    rows = [
        StageRow(
            s,
            [[_cell(run, s, n, key, i, longest[n]) for key in columns[n]] for i, n in enumerate(run.sets)],
            words.duration(s.seconds) if s.seconds is not None else "",
            leaves(s),
        )
        for s in run.stages
    ]
    return Table(names, rows)


HEADS = {"accuracy": "right", "length": "tokens", "mixed": "mixed"}


def head(run: RunFiles, name: str, key: str) -> str:
    """The column head of a figure on a set."""
    return "score" if key == "accuracy" and run.graded(name) else HEADS[key]


def leaves(stage: Stage) -> str:
    """The note below a stage's name in the table: what it produces if that is no policy, else its kind."""
    if stage.kind == "annotate":
        return "pairs, no model"
    if stage.is_scorer:
        return "scores answers, writes none"
    if stage.is_data:
        return "documents, no model"
    return stage.kind if stage.kind != stage.name else ""


def scored(figures: object) -> list[tuple[str, float]]:
    """(name, mean) of the components of a score."""
    keys = [k for k in figures if str(k).startswith("score/")] if isinstance(figures, dict) else []
    return [(k.removeprefix("score/"), x) for k in sorted(keys) if (x := number(figures, k)) is not None]


def problems(run: RunFiles, name: str) -> str:
    """The number of problems of a set, e.g. "1,024 problems"."""
    counts = {n for m in run.models if (n := number(m.figures.get(name), "n")) is not None}
    return f"{words.number(max(counts))} problems" if counts else ""


def _cell(run: RunFiles, stage: Stage, name: str, key: str, tone: int, longest: float) -> Cell:
    """The figure `key` of a stage on a set. longest: the largest mean length of the set's column, for its bars."""
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
    bar = chart.bar(value, most, title, tone=tone, between=between)
    return Cell(label, value, say(value), interval, "\n".join(n for n in notes if n), bar, key == "accuracy")


# ------------------------------------------------------------ stage by stage


@dataclass(frozen=True, slots=True)
class Card:
    """One stage in detail. compared: name of the model it started from. moved: (set, changes of its figures, changes of
    its score's components). held: (figure, description) on held-out pairs."""

    stage: Stage
    number: int
    facts: list[str]
    text: str
    compared: str
    moved: list[tuple[str, list[tuple[str, str, str]], str]]
    held: list[tuple[str, str]]
    charts: list[Chart]
    example: AnswerExample | None


STATES = {"missing": "not run yet", "unfinished": "unfinished", "finished": ""}


def cards(run: RunFiles) -> list[Card]:
    """A card for every stage, in the recipe's order."""
    return [_card(run, i, s) for i, s in enumerate(run.stages, 1)]


def _card(run: RunFiles, i: int, stage: Stage) -> Card:
    before = run.before(stage) if not stage.is_data else None
    facts = [kinds.origin(run, stage)]
    has_task = stage.is_rewarded or stage.is_data
    if has_task and (task := kinds.task_words(stage.spec.get("task") or run.recipe.get("task"))):
        facts.append(f"on {task}")
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
        [(n, m, _score_parts(stage, before, n)) for n in run.sets if (m := _changes(run, stage, before, n))],
        held(stage),
        curves.of_stage(run, stage),
        example(run, stage, before) if (stage.is_rewarded or stage.kind == "preference") and before else None,
    )


def held(stage: Stage) -> list[tuple[str, str]]:
    """(figure, description) of a stage's accuracy on held-out preference pairs."""
    figures = stage.held_out
    right, n = number(figures, "accuracy"), number(figures, "n")
    if (auc := number(figures, "auc")) is not None:
        return [
            (words.share(auc), "of (liked, disliked) held-out answers: the policy's log-ratio is larger for the liked")
        ]
    if right is None:
        return []
    low, high = number(figures, "low"), number(figures, "high")
    interval = f" ({words.share(low)} to {words.share(high)})" if low is not None and high is not None else ""
    pairs = f"of {words.number(n)} held-out pairs" if n is not None else "of held-out pairs"
    how = "ranked as the annotators did" if stage.is_scorer else "where the policy's log-ratio prefers the same answer"
    rows = [(words.share(right), f"{pairs} {how}{interval}")]
    if (ece := number(figures, "ece")) is not None:
        rows.append((words.number(ece), "expected calibration error (ECE): difference of confidence and accuracy"))
    if (correlation := number(figures, "length_correlation")) is not None:
        rows.append((words.number(correlation), "correlation of its score with the answer's length"))
    return rows


def _score_parts(stage: Stage, before: Stage | None, name: str) -> str:
    """The components of a score before and after a stage: right 0.21 → 0.66 · form 0.06 → 0.99."""
    old = dict(scored(before.figures.get(name))) if before else {}
    new = scored(stage.figures.get(name))
    return " · ".join(f"{k} {f'{words.score(old[k])} → ' if k in old else ''}{words.score(x)}" for k, x in new)


def _changes(run: RunFiles, stage: Stage, before: Stage | None, name: str) -> list[tuple[str, str, str]]:
    """(label, value before, value after) of a set's figures; the value before is empty without an earlier model."""
    changes = []
    for key, label, say in (
        ("accuracy", head(run, name, "accuracy"), story.say(run, name)),
        ("length", "tokens", words.tokens),
        ("mixed", "mixed", words.share),
    ):
        value = number(stage.figures.get(name), key)
        start = number(before.figures.get(name), key) if before else None
        if value is not None:
            changes.append((label, say(start) if start is not None else "", say(value)))
    return changes
