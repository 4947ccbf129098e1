"""The page's charts: losses, the funnel of rejection sampling, and stages trained on rewards side by side."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from ladder.report import chart, kinds, ranked, words
from ladder.report.run import RunFiles, Stage, number


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its caption. unit: what the values are, e.g. "nats per token"."""

    title: str
    unit: str
    drawing: Markup


def of_stage(run: RunFiles, stage: Stage) -> list[Chart]:
    """The charts on a stage's card. `side_by_side` draws the curves of stages trained on rewards."""
    evaluations = [] if stage.is_rewarded else measured(run, [stage])
    preferences = [] if stage.is_rewarded else [_multi_curve_chart([stage], *spec) for spec in PREFERENCES]
    return [c for c in (loss(stage), *preferences, *evaluations, funnel(stage), *_held_out(stage)) if c]


def loss(stage: Stage) -> Chart | None:
    """The loss of a stage trained on examples or preferences. A policy-gradient loss is no measure of progress."""
    points = series(stage, "loss")
    if stage.is_rewarded or len(points) < 2:
        return None
    panel = chart.Panel(stage.name, points[-1][0], [chart.Line(points, tone=0)])
    unit = "mean over the step" if stage.kind in ("preference", "reward_model") else "nats per token"
    return Chart("Loss", unit, chart.curves([panel], f"Loss of {stage.name}", ground=None))


def _held_out(stage: Stage) -> list[Chart]:
    """Charts of a reward model's accuracy on held-out pairs."""
    charts = []
    if bins := stage.held_out.get("bins"):
        drawing = ranked.reliability(bins, f"Reliability of {stage.name}")
        charts.append(Chart("Reliability", "share right of held-out pairs; on the diagonal: calibrated", drawing))
    if rows := stage.held_out.get("by_margin"):
        drawing = ranked.by_margin(rows, f"Accuracy of {stage.name} by margin")
        charts.append(Chart("Accuracy by margin", "share right of held-out pairs; dashed: chance", drawing))
    return charts


FUNNEL = {
    "sampled": "sampled answers",
    "judged": "answers that could be judged",
    "right": "answers with a right final answer",
    "correct": "answers with a right final answer",
    "clean": "well-formed answers in one notation",
    "distinct": "answers without duplicates",
    "kept": "answers within the quota of each problem",
}


def funnel(stage: Stage) -> Chart | None:
    """How many answers pass each filter of a stage of rejection sampling."""
    rows = [(name, FUNNEL.get(name, ""), count) for name, count in stage.funnel.items()]
    if not rows:
        return None
    return Chart("Answers kept", "number of answers", chart.funnel(rows, f"Answers kept by {stage.name}"))


def series(stage: Stage, key: str) -> list[chart.Point]:
    """(step, value) of a metric. Values below 1e-6 of the largest are rounding errors and become 0."""
    points = [(float(m["step"]), x) for m in stage.metrics if (x := number(m, key)) is not None]
    threshold = 1e-6 * max((abs(x) for _, x in points), default=0.0)
    return [(step, x if abs(x) > threshold else 0.0) for step, x in points]


# ------------------------------------------------------------ side by side

Known = tuple[str, str, str, chart.Say]
"""A chart of one curve: metrics key, title, unit, format of the values."""
Together = tuple[str, str, chart.Say, dict[str, str]]
"""A chart of several curves: title, unit, format of the values, metrics key -> name of the curve."""
PREFERENCES: tuple[Together, ...] = (
    ("Accuracy", "share of the step's pairs ranked as preferred", words.share, {"accuracy": ""}),
    ("Margin", "of the two answers' implicit rewards", words.number, {"rewards/margin": ""}),
    ("Margin", "of the two answers' scores", words.number, {"margin": ""}),
    (
        "Implicit rewards", "mean over the step's answers", words.number,
        {"rewards/desirable": "liked", "rewards/undesirable": "disliked"},
    ),
    (
        "Log-probability of the trained answers", "nats per answer", words.number,
        {
            "logps/chosen": "chosen", "logps/rejected": "rejected",
            "logps/desirable": "liked", "logps/undesirable": "disliked",
        },
    ),
)
VALUES: Together = (
    "Critic: values and returns", "mean over the step's tokens", words.number,
    {"critic/values/mean": "values", "critic/returns/mean": "returns"},
)
MAIN: tuple[Known, ...] = (
    ("length/mean", "Answer length", "tokens per answer", words.tokens),
    ("worked", "Worked answers", "share of answers with steps before the final answer", words.share),
    ("mixed", "Mixed notations", "share of worked answers that use both", words.share),
    ("entropy", "Entropy", "nats per token", words.number),
    ("kl_base", "KL from the base", "nats per token", words.number),
    ("kl/response", "KL of an answer", "nats per answer, from the starting model", words.number),
    ("critic/explained", "Critic: explained variance", "share of the returns' variance, by the values", words.number),
)
MORE: tuple[Known, ...] = (
    ("reward/penalised", "Penalised reward", "reward less the KL penalty, mean over the step's answers", words.number),
    ("critic/loss", "Critic: loss", "squared error of its values", words.number),
    ("critic/grad_norm", "Critic: gradient norm", "before clipping", words.number),
    ("groups/no_signal", "Groups without a signal", "share of groups with equal rewards", words.share),
    ("truncated", "Truncated", "share of answers that hit the length limit", words.share),
    ("checks", "Self-checks", "share of answers with a “?”", words.share),
    ("ratio/clipped", "Clipped", "share of tokens whose ratio was clipped", words.share),
    ("grad_norm", "Gradient norm", "before clipping", words.number),
    ("lr", "Learning rate", "", words.number),
    ("tokens_per_s", "Speed", "tokens per second", words.number),
)
NOT_PARTS = {"reward/mean", "reward/std", "reward/penalised"}
"""Metrics keys under `reward/` that are no component of the reward."""


def side_by_side(run: RunFiles) -> tuple[list[Chart], list[Chart]]:
    """(main charts, further charts) of the stages trained on rewards, one panel a stage on common axes."""
    stages = [s for s in run.stages if s.is_rewarded and s.metrics]
    curves = [_chart(stages, *spec) for spec in (*_reward_parts(stages), *MAIN)]
    main = [_reward_chart(run, stages), *measured(run, stages), *curves]
    more = [_multi_curve_chart(stages, *VALUES), *[_chart(stages, *spec) for spec in MORE]]
    return [c for c in main if c], [c for c in more if c]


def _reward_chart(run: RunFiles, stages: list[Stage]) -> Chart | None:
    """The trained reward and, in the same chart, the watched rewards."""
    share = all(kinds.is_answer_only(run, s) for s in stages)
    unit = "share of right answers" if share else "mean over the step's answers"
    watched = list(dict.fromkeys(n for s in stages for n in kinds.watches(s)))
    proxy = any(kinds.proxies(run, s) for s in stages)
    trained = "Proxy reward" if proxy else "Reward"
    if not watched:
        return _chart(stages, "reward/mean", trained, unit, words.share if share else words.number)
    title = f"{trained}; watched: {words.listed(watched)}"
    keys = {"reward/mean": "proxy" if proxy else "reward", **{f"watched/{n}": n for n in watched}}
    unit = f"{unit}; {words.listed(watched)}: not trained on"
    return _multi_curve_chart(stages, title, unit, words.number, keys)


def _multi_curve_chart(
    stages: list[Stage], title: str, unit: str, say: chart.Say, keys: dict[str, str]
) -> Chart | None:
    """A chart of several metrics, one panel a stage; None when no metric has at least two values."""
    panels = []
    for stage in stages:
        logged = {k: name for k, name in keys.items() if any(k in m for s in stages for m in s.metrics)}
        lines = [chart.Line(series(stage, k), name, i % TONES) for i, (k, name) in enumerate(logged.items())]
        lines = [line for line in lines if len(line.points) > 1]
        if lines:
            panels.append(_panel(stage, lines))
    if not panels:
        return None
    return Chart(title, unit, chart.curves(panels, title, say, ground=None if "logps/chosen" in keys else 0.0))


TONES = 4
"""Number of curve colours in the style sheet."""


def _reward_parts(stages: list[Stage]) -> list[Known]:
    """A chart for each named component of the reward."""
    names = sorted({k for s in stages for m in s.metrics for k in m if k.startswith("reward/")} - NOT_PARTS)
    return [(n, f"Reward: {n.removeprefix('reward/')}", "mean over the step's answers", words.number) for n in names]


def _chart(stages: list[Stage], key: str, title: str, unit: str, say: chart.Say) -> Chart | None:
    """A chart of one metric, one panel a stage; None when no stage has at least two values."""
    panels = [_panel(s, [chart.Line(series(s, key))]) for s in stages if len(series(s, key)) > 1]
    if not panels:
        return None
    return Chart(title, unit, chart.curves(panels, title, say))


def _panel(stage: Stage, lines: list[chart.Line]) -> chart.Panel:
    ends = [p[0] for line in lines for p in line.points]
    return chart.Panel(stage.name, max([*ends, float(stage.steps or 1)]), lines)


def measured(run: RunFiles, stages: list[Stage]) -> list[Chart]:
    """Charts of accuracies and of scores on the evaluation sets, of stages evaluated more than once while training."""
    return [c for graded in (False, True) if (c := _evaluation_chart(run, stages, graded))]


def _evaluation_chart(run: RunFiles, stages: list[Stage], graded: bool) -> Chart | None:
    panels = []
    for stage in stages:
        lines = [
            chart.Line(_evaluation_series(stage, n), n, i) for i, n in enumerate(run.sets) if run.graded(n) == graded
        ]
        lines = [line for line in lines if len(line.points) > 1]
        if lines:
            panels.append(_panel(stage, lines))
    if not panels:
        return None
    title = f"{'Score' if graded else 'Accuracy'} on the evaluation sets"
    unit, say = ("mean score", words.score) if graded else ("share right", words.share)
    return Chart(title, unit, chart.curves(panels, title, say))


def _evaluation_series(stage: Stage, name: str) -> list[chart.Point]:
    """(step, accuracy) on a set at the highest temperature; of several evaluations of a step, the last."""
    evals = [e for e in stage.evals if e.get("set") == name and number(e, "accuracy") is not None]
    highest = max((number(e, "temperature") or 0.0 for e in evals), default=0.0)
    return sorted(
        {float(e["step"]): float(e["accuracy"]) for e in evals if (number(e, "temperature") or 0.0) == highest}.items()
    )
