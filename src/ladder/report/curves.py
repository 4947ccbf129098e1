"""What the page draws: losses, the funnel of a harvest, and reward-driven stages side by side on common axes."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from ladder.report import chart, kinds, ranked, words
from ladder.report.run import Run, Stage, number


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    unit: str
    drawing: Markup


def of_stage(run: Run, stage: Stage) -> list[Chart]:
    """The charts of one stage alone; those that learn from rewards stand side by side elsewhere."""
    own = [] if stage.is_rewarded else measured(run, [stage])
    learned = [] if stage.is_rewarded else [_lines([stage], *one) for one in PREFERENCES]
    return [c for c in (loss(stage), *learned, *own, funnel(stage), *_held_out(stage)) if c]


def loss(stage: Stage) -> Chart | None:
    """The loss of stages that imitate or prefer; the loss of a policy with rewards says nothing by itself."""
    points = series(stage, "loss")
    if stage.is_rewarded or len(points) < 2:
        return None
    panel = chart.Panel(stage.name, points[-1][0], [chart.Line(points, tone=0)])
    unit = "mean over the step" if stage.kind in ("preference", "reward_model") else "nats per token"
    return Chart("Loss", unit, chart.curves([panel], f"Loss of {stage.name}", ground=None))


def _held_out(stage: Stage) -> list[Chart]:
    """How a reward model ranks pairs that it never saw."""
    out = []
    if bins := stage.held_out.get("bins"):
        drawing = ranked.reliability(bins, f"Reliability of {stage.name}")
        out.append(Chart("Reliability", "held-out pairs: share right; on the line, as often as it says", drawing))
    if rows := stage.held_out.get("by_margin"):
        drawing = ranked.by_margin(rows, f"Accuracy of {stage.name} by margin")
        out.append(Chart("Accuracy by margin", "held-out pairs: share right; dashed: guessing", drawing))
    return out


FUNNEL = {
    "sampled": "answers the model wrote",
    "judged": "answers that could be judged",
    "right": "whose final answer is right",
    "correct": "whose final answer is right",
    "clean": "that are well-formed and in one notation",
    "distinct": "after removing duplicates",
    "kept": "after the quota for each problem",
}


def funnel(stage: Stage) -> Chart | None:
    rows = [(name, FUNNEL.get(name, ""), count) for name, count in stage.funnel.items()]
    if not rows:
        return None
    return Chart("What is kept", "answers", chart.funnel(rows, f"Answers kept by {stage.name}"))


def series(stage: Stage, key: str) -> list[chart.Point]:
    """A curve; what is nothing beside its largest value is rounding."""
    found = [(float(m["step"]), x) for m in stage.metrics if (x := number(m, key)) is not None]
    least = 1e-6 * max((abs(x) for _, x in found), default=0.0)
    return [(step, x if abs(x) > least else 0.0) for step, x in found]


# ------------------------------------------------------------ side by side

Known = tuple[str, str, str, chart.Say]
Together = tuple[str, str, chart.Say, dict[str, str]]
"""Title, unit, how values are written, and the curves of one chart: key -> name."""
PREFERENCES: tuple[Together, ...] = (
    ("Accuracy", "share of the step's pairs ranked as preferred", words.share, {"accuracy": ""}),
    ("Margin", "of the two answers' implicit rewards", words.number, {"rewards/margin": ""}),
    ("Margin", "of the two answers' scores", words.number, {"margin": ""}),
    (
        "Implicit rewards", "mean over the step's answers", words.number,
        {"rewards/desirable": "liked", "rewards/undesirable": "disliked"},
    ),
    (
        "Log-probability of answers", "nats per answer, of those trained on", words.number,
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
    ("worked", "Worked out", "share of answers with steps before the answer", words.share),
    ("mixed", "Mixed notations", "share of worked answers that use both", words.share),
    ("entropy", "Entropy", "nats per token: how undecided the model is", words.number),
    ("kl_base", "KL from the base", "nats per token: how far it has moved away", words.number),
    ("kl/response", "KL of an answer", "nats per answer, from the model it began as", words.number),
    ("critic/explained", "Critic: explained", "share of the returns' variance that it foresees", words.number),
)
MORE: tuple[Known, ...] = (
    ("reward/penalised", "Penalised reward", "less the KL, mean over the step's answers", words.number),
    ("critic/loss", "Critic: loss", "squared error of its values", words.number),
    ("critic/grad_norm", "Critic: gradient norm", "before clipping", words.number),
    ("groups/no_signal", "Groups without a signal", "share whose answers all scored the same", words.share),
    ("truncated", "Cut off", "share of answers that hit the length limit", words.share),
    ("checks", "Second thoughts", "share of answers with a “?”", words.share),
    ("ratio/clipped", "Clipped", "share of tokens whose ratio was clipped", words.share),
    ("grad_norm", "Gradient norm", "before clipping", words.number),
    ("lr", "Learning rate", "", words.number),
    ("tokens_per_s", "Speed", "tokens per second", words.number),
)
NOT_PARTS = {"reward/mean", "reward/std", "reward/penalised"}


def side_by_side(run: Run) -> tuple[list[Chart], list[Chart]]:
    """The reward-driven stages on common axes: the charts that tell the story, and the rest."""
    stages = [s for s in run.stages if s.is_rewarded and s.metrics]
    found = [_together(stages, *one) for one in (*_parts(stages), *MAIN)]
    main = [_rewards(run, stages), *measured(run, stages), *found]
    more = [_lines(stages, *VALUES), *[_together(stages, *one) for one in MORE]]
    return [c for c in main if c], [c for c in more if c]


def _rewards(run: Run, stages: list[Stage]) -> Chart | None:
    """What was climbed and, beside it, what was only measured."""
    share = all(kinds.is_answer_only(run, s) for s in stages)
    unit = "share of right answers" if share else "mean over the step's answers"
    watched = list(dict.fromkeys(n for s in stages for n in kinds.watches(s)))
    proxy = any(kinds.proxies(run, s) for s in stages)
    if not watched:
        title = "Proxy reward" if proxy else "Reward"
        return _together(stages, "reward/mean", title, unit, words.share if share else words.number)
    title = f"{'Proxy reward' if proxy else 'Reward'}, and {words.listed(watched)} beside it"
    keys = {"reward/mean": "proxy" if proxy else "reward", **{f"watched/{n}": n for n in watched}}
    return _lines(stages, title, f"{unit}; {words.listed(watched)}: never trained on", words.number, keys)


def _lines(stages: list[Stage], title: str, unit: str, say: chart.Say, keys: dict[str, str]) -> Chart | None:
    """Several curves in one chart."""
    panels = []
    for stage in stages:
        there = {k: name for k, name in keys.items() if any(k in m for s in stages for m in s.metrics)}
        lines = [chart.Line(series(stage, k), name, i % TONES) for i, (k, name) in enumerate(there.items())]
        lines = [line for line in lines if len(line.points) > 1]
        if lines:
            panels.append(_panel(stage, lines))
    if not panels:
        return None
    return Chart(title, unit, chart.curves(panels, title, say, ground=None if "logps/chosen" in keys else 0.0))


TONES = 4
"""Colours of curves in the style sheet."""


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


def measured(run: Run, stages: list[Stage]) -> list[Chart]:
    """Shares and scores on the sets while training, where they were measured more than once."""
    return [c for graded in (False, True) if (c := _measured(run, stages, graded))]


def _measured(run: Run, stages: list[Stage], graded: bool) -> Chart | None:
    panels = []
    for stage in stages:
        lines = [chart.Line(_evaluated(stage, n), n, i) for i, n in enumerate(run.sets) if run.graded(n) == graded]
        lines = [line for line in lines if len(line.points) > 1]
        if lines:
            panels.append(_panel(stage, lines))
    if not panels:
        return None
    title = f"{'Score' if graded else 'Accuracy'} on the evaluation sets"
    unit, say = ("mean score", words.score) if graded else ("share right", words.share)
    return Chart(title, unit, chart.curves(panels, title, say))


def _evaluated(stage: Stage, name: str) -> list[chart.Point]:
    """(step, accuracy) at the highest temperature measured; of a step measured twice, the last."""
    own = [e for e in stage.evals if e.get("set") == name and number(e, "accuracy") is not None]
    hottest = max((number(e, "temperature") or 0.0 for e in own), default=0.0)
    return sorted(
        {float(e["step"]): float(e["accuracy"]) for e in own if (number(e, "temperature") or 0.0) == hottest}.items()
    )
