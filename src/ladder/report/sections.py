"""The parts of the page as plain views: the table, a card for each stage, curves on common axes, problems, terms.

A view holds finished texts and drawings; the template only places them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from markupsafe import Markup

from ladder.report import chart, marks, story, words
from ladder.report.run import Figures, Run, Stage, number

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
class Chart:
    title: str
    unit: str
    drawing: Markup


@dataclass(frozen=True, slots=True)
class Example:
    """One problem before and after a stage."""

    prompt: str
    answer: str
    before: Answer
    after: Answer


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
        [c for c in (_loss(stage), _measured(run, [stage]) if stage.kind != "rl" else None, _funnel(stage)) if c],
        _example(run, stage, before) if stage.kind == "rl" and before else None,
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


def _loss(stage: Stage) -> Chart | None:
    """The loss of stages that imitate; a policy's loss says nothing by itself."""
    points = series(stage, "loss")
    if stage.kind == "rl" or len(points) < 2:
        return None
    panel = chart.Panel(stage.name, points[-1][0], [chart.Line(points, tone=0)])
    return Chart("Loss", "nats per token", chart.curves([panel], f"Loss of {stage.name}", ground=None))


FUNNEL = {
    "sampled": "answers the model wrote",
    "judged": "answers that could be judged",
    "right": "whose final answer is right",
    "correct": "whose final answer is right",
    "clean": "that are well-formed and in one notation",
    "distinct": "after removing duplicates",
    "kept": "after the quota for each problem",
}


def _funnel(stage: Stage) -> Chart | None:
    rows = [(name, FUNNEL.get(name, ""), count) for name, count in stage.funnel.items()]
    if not rows:
        return None
    return Chart("What is kept", "answers", chart.funnel(rows, f"Answers kept by {stage.name}"))


def series(stage: Stage, key: str) -> list[chart.Point]:
    return [(float(m["step"]), x) for m in stage.metrics if (x := number(m, key)) is not None]


# ------------------------------------------------------------ curves on common axes

Known = tuple[str, str, str, chart.Say]
MAIN: tuple[Known, ...] = (
    ("length/mean", "Answer length", "tokens per answer", words.tokens),
    ("worked", "Worked out", "share of answers with steps before the answer", words.share),
    ("mixed", "Mixed notations", "share of worked answers that use both", words.share),
    ("entropy", "Entropy", "nats per token: how undecided the model is", words.number),
    ("kl_base", "KL from the base", "nats per token: how far it has moved away", words.number),
)
MORE: tuple[Known, ...] = (
    ("groups/no_signal", "Groups without a signal", "share whose answers all scored the same", words.share),
    ("truncated", "Cut off", "share of answers that hit the length limit", words.share),
    ("checks", "Second thoughts", "share of answers with a “?”", words.share),
    ("ratio/clipped", "Clipped", "share of tokens whose ratio was clipped", words.share),
    ("grad_norm", "Gradient norm", "before clipping", words.number),
    ("lr", "Learning rate", "", words.number),
    ("tokens_per_s", "Speed", "tokens per second", words.number),
)
NOT_PARTS = {"reward/mean", "reward/std"}


def side_by_side(run: Run) -> tuple[list[Chart], list[Chart]]:
    """The reward-driven stages on common axes: the charts that tell the story, and the rest."""
    stages = [s for s in run.stages if s.kind == "rl" and s.metrics]
    found = [_together(stages, *one) for one in (_reward(run, stages), *_parts(stages), *MAIN)]
    main = [found[0], _measured(run, stages), *found[1:]]
    more = [_together(stages, *one) for one in MORE]
    return [c for c in main if c], [c for c in more if c]


def _reward(run: Run, stages: list[Stage]) -> Known:
    share = all(story.is_answer_only(run, s) for s in stages)
    unit = "share of right answers" if share else "mean over the step's answers"
    return "reward/mean", "Reward", unit, words.share if share else words.number


def _parts(stages: list[Stage]) -> list[Known]:
    """The reward's named components."""
    names = sorted({k for s in stages for m in s.metrics for k in m if k.startswith("reward/")} - NOT_PARTS)
    return [(n, f"Reward: {n.removeprefix('reward/')}", "mean over the step's answers", words.number) for n in names]


def _together(stages: list[Stage], key: str, title: str, unit: str, say: chart.Say) -> Chart | None:
    panels = [_panel(s, [chart.Line(series(s, key))]) for s in stages if len(series(s, key)) > 1]
    if not panels:
        return None
    return Chart(title, unit, chart.curves(panels, title, say))


def _panel(stage: Stage, lines: list[chart.Line]) -> chart.Panel:
    ends = [p[0] for line in lines for p in line.points]
    return chart.Panel(stage.name, max([*ends, float(stage.steps or 1)]), lines)


def _measured(run: Run, stages: list[Stage]) -> Chart | None:
    """Accuracy on the sets while training, where it was measured more than once."""
    panels = []
    for stage in stages:
        lines = [chart.Line(_evaluated(stage, n), n, i) for i, n in enumerate(run.sets)]
        lines = [line for line in lines if len(line.points) > 1]
        if lines:
            panels.append(_panel(stage, lines))
    if not panels:
        return None
    title = "Accuracy on the evaluation sets"
    return Chart(title, "share right", chart.curves(panels, title, words.share))


def _evaluated(stage: Stage, name: str) -> list[chart.Point]:
    """(step, accuracy) at the highest temperature measured; of a step measured twice, the last."""
    own = [e for e in stage.evals if e.get("set") == name and number(e, "accuracy") is not None]
    hottest = max((number(e, "temperature") or 0.0 for e in own), default=0.0)
    return sorted(
        {float(e["step"]): float(e["accuracy"]) for e in own if (number(e, "temperature") or 0.0) == hottest}.items()
    )


# ------------------------------------------------------------ the same problems, stage by stage


@dataclass(frozen=True, slots=True)
class Answer:
    """What a stage wrote. verdict: right, partly, wrong, unknown. said: the same in words. note: length and more."""

    stage: str
    verdict: str
    mark: str
    said: str
    pieces: marks.Pieces
    note: str
    long: bool


@dataclass(frozen=True, slots=True)
class Problem:
    prompt: str
    answer: str
    answers: list[Answer]


@dataclass(frozen=True, slots=True)
class ProblemSet:
    name: str
    first: list[Problem] = field(default_factory=list)
    rest: list[Problem] = field(default_factory=list)


OPEN = 3
"""Problems of a set shown at once; the others can be unfolded."""
LONG = 400
"""Characters from which an answer gets a scroll bar of its own."""
MARKS = {"right": "✓", "wrong": "✗", "partly": "◐", "unknown": "?"}


def problem_sets(run: Run) -> list[ProblemSet]:
    """Problems by set, each with what every stage's model wrote."""
    found: dict[str, dict[str, list[tuple[Stage, Figures]]]] = {}
    for stage in run.stages:
        for sample in stage.samples:
            key = str(sample.get("task", sample.get("prompt")))
            found.setdefault(str(sample.get("set", "")), {}).setdefault(key, []).append((stage, sample))
    names = [n for n in run.sets if n in found] + [n for n in found if n not in run.sets]
    out = []
    for name in names:
        classify = marks.classifier(run.recipe, name)
        all_of = [_problem(answers, classify) for answers in found[name].values()]
        out.append(ProblemSet(name, all_of[:OPEN], all_of[OPEN:]))
    return out


def _problem(answers: list[tuple[Stage, Figures]], classify: marks.Classify | None) -> Problem:
    first = answers[0][1]
    return Problem(
        prompt(first.get("prompt")),
        words.visible(first.get("answer", "")),
        [_answer(stage, sample, classify) for stage, sample in answers],
    )


def prompt(value: object) -> str:
    """A prompt's text; of a conversation, every turn with its role."""
    if isinstance(value, list):
        turns = [m for m in value if isinstance(m, dict)]
        return "\n".join(words.visible(f"{m.get('role', '')}: {m.get('content', '')}") for m in turns)
    return words.visible(value if value is not None else "")


def _answer(stage: Stage, sample: Figures, classify: marks.Classify | None) -> Answer:
    reward, text = number(sample, "reward"), words.visible(sample.get("text") or "")
    verdict = "unknown" if reward is None else "right" if reward >= 1 else "wrong" if reward <= 0 else "partly"
    said = "not judged" if reward is None else verdict if reward in (0, 1) else f"reward {words.number(reward)}"
    length = number(sample, "length")
    notes = [said] if said not in ("right", "wrong") else []
    notes += [f"{words.number(length)} tokens"] if length is not None else []
    return Answer(
        stage.name,
        verdict,
        MARKS[verdict],
        said,
        marks.pieces(text, classify),
        " · ".join(notes),
        len(text) > LONG,
    )


def _example(run: Run, stage: Stage, before: Stage) -> Example | None:
    """Of the problems that the stage turned from wrong to right, the one whose answer's length changed most."""
    old = {(s.get("set"), s.get("task")): s for s in before.samples if s.get("task") is not None}
    pairs = [(old[k], s) for s in stage.samples if (k := (s.get("set"), s.get("task"))) in old]
    turned = [p for p in pairs if number(p[0], "reward") == 0 and number(p[1], "reward") == 1]
    if not turned:
        return None
    a, b = max(turned, key=lambda p: abs((number(p[0], "length") or 0) - (number(p[1], "length") or 0)))
    classify = marks.classifier(run.recipe, str(b.get("set", "")))
    return Example(
        prompt(b.get("prompt")),
        words.visible(b.get("answer", "")),
        _answer(before, a, classify),
        _answer(stage, b, classify),
    )


# ------------------------------------------------------------ terms

Term = tuple[str, str]


def terms(run: Run) -> list[Term]:
    """What the words on the page mean; only those that occur."""
    figures = [f for m in run.models for f in m.figures.values()]
    metrics = [m for s in run.stages for m in s.metrics[:1]]
    samples = max((number(f, "samples") or 1 for f in figures), default=1)
    interval = (
        "Wilson's, one answer to each problem"
        if samples == 1
        else f"bootstrap over problems, {words.number(samples)} answers to each"
    )
    temperature = next((t for f in figures if (t := number(f, "temperature")) is not None), 1.0)
    known: list[tuple[Callable[[], bool], str, str]] = [
        (
            lambda: bool(figures),
            "right",
            "The share of problems whose answer is right, drawn at temperature "
            f"{words.number(temperature)}: as the model writes, not at its best.",
        ),
        (lambda: any("low" in f for f in figures), "95% interval", f"The thin line on a bar: {interval}."),
        (
            lambda: any("greedy" in f for f in figures),
            "greedy",
            "The same problems answered by always taking the likeliest token.",
        ),
        (lambda: any("length" in f for f in figures), "tokens", "The mean length of an answer, in the model's tokens."),
        (
            lambda: any("mixed" in f for f in figures),
            "mixed",
            "The share of worked answers (those with steps before the answer) that use both notations.",
        ),
        (lambda: any("entropy" in m for m in metrics), "entropy", "0: it always writes the same; more: it varies."),
        (
            lambda: any("kl_base" in m for m in metrics),
            "KL from the base",
            "How much the model's next-token probabilities differ from those of the model that reward-driven training "
            "began from; 0: not at all.",
        ),
        (
            lambda: any(s.is_data and s.figures for s in run.stages),
            "documents",
            "A stage that keeps answers has no model of its own: its row describes the documents it kept.",
        ),
    ]
    return [(name, text) for there, name, text in known if there()]
