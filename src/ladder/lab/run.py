"""Runs an experiment: the base model and the experiment's recipe for every seed, then the verdict and the figure.

    OUT/base/seed-0/            run of the base model; all experiments of a seed start from it
    OUT/NAME/seed-0/            run of the recipe, as `ladder run` writes it
    OUT/NAME/NAME.json .md .svg figures of all seeds, effects with intervals and the sentence; the drawing

Finished stages are not repeated, as in any run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladder.base.errors import UserError
from ladder.base.files import write_json, write_text
from ladder.lab.experiment import Experiment, Measured, Verdict
from ladder.pipeline import recipe as recipes
from ladder.pipeline.run import run as run_recipe
from ladder.report.figure import STYLE
from ladder.tracking.console import Console

BASE = "lab/base"
OPEN: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False}


def perform(
    experiment: Experiment, seeds: Sequence[int], out: Path, console: Console, changes: Sequence[str] = ()
) -> Verdict:
    """Runs the experiment for every seed, writes verdict and figure to `out/NAME/` and returns the verdict.

    changes: overrides of the experiment's recipe. Raises UserError, Interrupted.
    """
    if len(set(seeds)) < 2:
        raise UserError("an interval needs at least two different seeds", field="--seeds", hint="give e.g. 0,1,2")
    measured: list[Measured] = []
    for seed in seeds:
        console.say(f"[bold]{experiment.name}, seed {seed}[/bold]")
        base = _run(BASE, [f"seed={seed}"], out / "base" / f"seed-{seed}", console)
        model = base / "pretrain" / "model"
        overrides = [*changes, f"seed={seed}", f"model.source={model}"]
        run = _run(experiment.recipe, overrides, out / experiment.name / f"seed-{seed}", console)
        measured.append(experiment.measure(run))
    verdict = experiment.verdict(measured)
    write(experiment, seeds, measured, verdict, out / experiment.name)
    return verdict


def _run(name: str, changes: Sequence[str], out: Path, console: Console) -> Path:
    recipe, document = recipes.load(name, changes)
    return run_recipe(recipe, document, out, console)


def write(
    experiment: Experiment, seeds: Sequence[int], measured: Sequence[Measured], verdict: Verdict, directory: Path
) -> None:
    """Writes NAME.json, NAME.md and NAME.svg to `directory`."""
    write_json(
        directory / f"{experiment.name}.json",
        {
            "claim": experiment.claim,
            "holds": verdict.holds,
            "sentence": verdict.sentence,
            "effect": verdict.effect.record(),
            "more": {name: e.record() for name, e in verdict.more.items()},
            "table": verdict.table,
            "seeds": dict(zip(map(str, seeds), measured, strict=True)),
        },
    )
    write_text(directory / f"{experiment.name}.md", page(experiment, seeds, verdict))
    draw(experiment, measured, directory / f"{experiment.name}.svg")


def page(experiment: Experiment, seeds: Sequence[int], verdict: Verdict) -> str:
    """The verdict as Markdown: claim, sentence, figure, table, and every effect with its interval."""
    lines = [f"**The claim.** {experiment.claim}.", ""]
    lines += [f"**{'It holds here' if verdict.holds else 'It does not hold here'}.** {verdict.sentence}", ""]
    lines += [f"![{experiment.name}]({experiment.name}.svg)", ""]
    for i, row in enumerate(verdict.table):
        lines.append("| " + " | ".join(row) + " |")
        lines += ["|" + "---|" * len(row)] if i == 0 else []
    effects = {"the effect": verdict.effect} | verdict.more
    lines += ["", f"| difference | mean of seeds {', '.join(map(str, seeds))} | 95% interval |", "|---|---|---|"]
    lines += [f"| {name} | {e.mean:+.3f} | {e.low:+.3f} to {e.high:+.3f} |" for name, e in effects.items()]
    return "\n".join(lines) + "\n"


def draw(experiment: Experiment, measured: Sequence[Measured], path: Path) -> None:
    """Writes the experiment's figure to `path`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE | OPEN):
        figure = Figure(figsize=experiment.size, layout="constrained", facecolor="white")
        experiment.draw(measured, figure)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
