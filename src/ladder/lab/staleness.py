"""Off-policy learning: training on answers of an older policy or of another model, with and without correction.

All runs train in the same way on equally many answers and differ in the behaviour policy that samples the answers: the
current policy, the policy 1, 4 or 16 updates ago, the base model throughout, or another model. Corrections: the clipped
ratio of PPO (`PolicyClip`), and REINFORCE weighted by the capped ratio (`CISPO`: Ionides 2008's truncated importance
sampling, as in IMPALA, Espeholt et al. 2018, arXiv:1802.01561). No correction: `PolicyGradient`. Stale answers in RL of
language models: Noukhovitch et al. 2024, arXiv:2410.18252; AReaL, Fu et al. 2025, arXiv:2505.24298.

Learning per sample is the mean accuracy of the policy over the run (the area under its curve); stability is the fall of
accuracy from its best to its end. Left out: AReaL's decoupled objective (a ratio to the policy at the step's start,
weighted by the ratio of that policy to the behaviour policy): with one optimiser step a batch the first ratio is 1 and
the second is the capped weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladder.base.jsonl import read_lines
from ladder.lab.experiment import Experiment, Measured, Verdict
from ladder.lab.stats import difference, effect
from ladder.report.figure import COLOURS, SOFT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHO = {
    "lag1": "1 update old",
    "lag4": "4 updates old",
    "lag16": "16 updates old",
    "start": "of the base",
    "other": "of another model",
}
"""Behaviour policy: part of the stages' names -> description."""
HOW = {"clip": "clipped ratio", "capped": "capped ratio", "none": "no correction"}
"""Correction: part of the stages' names -> description."""
RUNS = ("on_policy", *(f"{who}_{how}" for who in WHO for how in HOW if (who, how) != ("lag1", "capped")))


def measure(run: Path) -> Measured:
    """{stage: {"steps", "accuracy" at these steps, "gradient" (largest norm), "clipped" (mean share)}}."""
    return {name: _stage_figures(run / name) for name in RUNS}


def _stage_figures(stage: Path) -> dict[str, Any]:
    curve = [(r["step"], r["accuracy"]) for r in read_lines(stage / "evals.jsonl") if r["set"] == "easy"]
    rows = [r for r in read_lines(stage / "metrics.jsonl") if "loss" in r]
    clipped = [r["ratio/clipped"] for r in rows if "ratio/clipped" in r]
    return {
        "steps": [step for step, _ in curve],
        "accuracy": [value for _, value in curve],
        "gradient": max(r["grad_norm"] for r in rows),
        "clipped": sum(clipped) / len(clipped) if clipped else 0.0,
    }


def learning(one: dict[str, Any]) -> float:
    """The mean accuracy over a run. one: the figures of its stage."""
    return sum(one["accuracy"]) / len(one["accuracy"])


def fall(one: dict[str, Any]) -> float:
    """The fall from the best accuracy of a run to its last. one: the figures of its stage."""
    return max(one["accuracy"]) - one["accuracy"][-1]


def verdict(measured: Sequence[Measured]) -> Verdict:
    """Holds when, from answers 16 updates old, both corrections end higher than no correction."""

    def last(name: str) -> list[float]:
        """The last accuracy of a stage, one value a seed."""
        return [m[name]["accuracy"][-1] for m in measured]

    def mean(name: str) -> list[float]:
        """The mean accuracy of a stage over its run, one value a seed."""
        return [learning(m[name]) for m in measured]

    gap, capped = (difference(last(f"lag16_{how}"), last("lag16_none")) for how in ("clip", "capped"))
    more = {"lag16, end: capped ratio - no correction": capped}
    for who in WHO:
        more |= {f"{who}, mean: {HOW[how]} - on-policy": difference(mean(f"{who}_{how}"), mean("on_policy"))
                 for how in HOW if f"{who}_{how}" in RUNS}  # fmt: skip
    falls = {how: effect([fall(m[f"lag16_{how}"]) for m in measured]).mean for how in HOW}
    sentence = (
        f"From answers 16 updates old the policy ends at {_mean(last('lag16_clip')):.0%} with a clipped ratio, at "
        f"{_mean(last('lag16_capped')):.0%} with a capped one and at {_mean(last('lag16_none')):.0%} without "
        f"correction, {100 * falls['none']:.0f} points below its best there (clipped less none: {100 * gap.mean:+.0f} "
        f"points, 95% interval {100 * gap.low:+.0f} to {100 * gap.high:+.0f}); on-policy it ends at "
        f"{_mean(last('on_policy')):.0%}."
    )
    return Verdict(gap.positive and capped.positive, gap, sentence, more, _table(measured))


def _mean(values: Sequence[float]) -> float:
    return effect(values).mean


def _table(measured: Sequence[Measured]) -> list[list[str]]:
    rows = [["answers", "correction", "mean of the run", "at the end", "fall", "largest gradient", "clipped"]]
    for name in RUNS:
        who, _, how = name.partition("_")
        labels = ["on-policy", "(none is needed)"] if name == "on_policy" else [WHO[who], HOW[how]]
        seeds = [m[name] for m in measured]
        shares = [_mean([f(s) for s in seeds]) for f in (learning, lambda s: s["accuracy"][-1], fall)]
        gradient, clipped = (_mean([s[f] for s in seeds]) for f in ("gradient", "clipped"))
        clipped_cell = "" if how == "none" else f"{clipped:.1%}"
        rows.append([*labels, *(f"{x:.1%}" for x in shares), f"{gradient:.2f}", clipped_cell])
    return rows


def draw(measured: Sequence[Measured], figure: Figure) -> None:
    """A panel for each behaviour policy: accuracy over updates with each correction, thin lines for single seeds."""
    panels = figure.subplots(1, len(WHO), sharey=True)
    colours = dict(zip(HOW, (COLOURS[0], COLOURS[2], COLOURS[1]), strict=True))
    for axes, (who, title) in zip(panels, WHO.items(), strict=True):
        lines = [("on_policy", SOFT, "on-policy")]
        lines += [(f"{who}_{how}", colours[how], HOW[how]) for how in HOW if f"{who}_{how}" in RUNS]
        for name, colour, label in lines:
            steps = measured[0][name]["steps"]
            for m in measured:
                axes.plot(steps, [100 * a for a in m[name]["accuracy"]], color=colour, linewidth=0.6, alpha=0.5)
            means = [100 * _mean(values) for values in zip(*(m[name]["accuracy"] for m in measured), strict=True)]
            linestyle = "--" if name == "on_policy" else "-"
            axes.plot(steps, means, color=colour, linewidth=2, linestyle=linestyle, label=label)
        axes.set_title(title, loc="left", fontsize=9.5)
        axes.set_xlabel("updates")
        axes.set_ylim(0, 102)
    panels[0].set_ylabel("right, %")
    panels[2].legend(frameon=False, fontsize=7)


EXPERIMENT = Experiment(
    name="staleness",
    claim=(
        "A policy learns from answers many updates old when the loss corrects for it by an importance ratio, and "
        "degrades without it (after Espeholt et al. 2018, arXiv:1802.01561; Fu et al. 2025, arXiv:2505.24298)"
    ),
    measure=measure,
    verdict=verdict,
    draw=draw,
    size=(12.5, 3.2),
)
