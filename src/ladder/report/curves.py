"""What the page draws: losses, the funnel of a harvest, and reward-driven stages side by side on common axes."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from ladder.report import chart, story, words
from ladder.report.run import Run, Stage, number


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    unit: str
    drawing: Markup


def of_stage(run: Run, stage: Stage) -> list[Chart]:
    """The charts of one stage alone; those that learn from rewards stand side by side elsewhere."""
    own = None if stage.kind == "rl" else measured(run, [stage])
    return [c for c in (loss(stage), own, funnel(stage)) if c]


def loss(stage: Stage) -> Chart | None:
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


def funnel(stage: Stage) -> Chart | None:
    rows = [(name, FUNNEL.get(name, ""), count) for name, count in stage.funnel.items()]
    if not rows:
        return None
    return Chart("What is kept", "answers", chart.funnel(rows, f"Answers kept by {stage.name}"))


def series(stage: Stage, key: str) -> list[chart.Point]:
    return [(float(m["step"]), x) for m in stage.metrics if (x := number(m, key)) is not None]


# ------------------------------------------------------------ side by side

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
    main = [found[0], measured(run, stages), *found[1:]]
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


def measured(run: Run, stages: list[Stage]) -> Chart | None:
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
