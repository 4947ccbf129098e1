"""Commands on recipes and runs: `ladder run`, `recipes`, `replay`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from ladder.pipeline import lineage
from ladder.pipeline import recipe as recipes
from ladder.pipeline.evaluate import number
from ladder.pipeline.run import plan as plan_run
from ladder.pipeline.run import run as start
from ladder.report import page
from ladder.tracking import trackers
from ladder.tracking.console import Console

STATUS = {"done": "[green]done[/green]", "resume": "[yellow]resumes[/yellow]", "new": "to do", "stale": "to do again"}


def run_recipe(
    name: str,
    changes: Sequence[str],
    out: Path | None,
    *,
    without: Sequence[str] = (),
    until: str | None,
    plan: bool,
    quiet: bool,
) -> None:
    """`ladder run`: plans or runs the stages of a recipe up to `until`, then writes the report. Raises UserError.

    changes: overrides `stage.field=value`. without: names of stages to skip.
    """
    recipe, document = recipes.load(name, changes, without)
    n_stages = recipe.first(until)
    directory = out or Path("runs") / recipe.name
    console = Console(quiet=quiet)
    if plan:
        planned = plan_run(recipe, document, directory)[:n_stages]
        rows = [[p.name, p.config.kind, p.key[:12], STATUS[p.status], p.why] for p in planned]
        console.table(f"{recipe.name} in {directory}", ["stage", "kind", "identity", "status", ""], rows, 5)
        return
    if recipe.about:
        console.say(f"[dim]{recipe.about.strip()}[/dim]")
    console.say(f"{recipe.name}: {n_stages} stages, seed {recipe.seed}, in {directory}")
    start(recipe, document, directory, console, until=until)
    finish(directory, console)


def finish(directory: Path, console: Console) -> None:
    """Prints the table of a finished run's evaluation figures and writes its report."""
    summary = lineage.read_json(directory / "summary.json")
    rows = []
    for name, stage in summary["stages"].items():
        for i, (set_name, figures) in enumerate(
            (k, v) for k, v in stage.items() if isinstance(v, dict) and "length" in v
        ):
            greedy = figures.get("greedy", {}).get("accuracy")
            rows.append(
                [
                    name if i == 0 else "",
                    set_name,
                    number(figures["accuracy"], figures),
                    number(greedy, figures) if greedy is not None else "",
                    f"{figures['length']:.1f}",
                    f"{figures['mixed']:.1%}" if "mixed" in figures else "",
                    f"{stage['seconds']:.0f}" if i == 0 else "",
                ]
            )
    console.table("", ["stage", "set", "right", "greedy", "length", "mixed", "seconds"], rows, 2)
    path = page.write(directory)
    console.say(f"{summary['seconds']:.0f} seconds in total. Report: [bold]{path}[/bold]")


def list_recipes() -> None:
    """`ladder recipes`: prints the name of every available recipe with the first line of its `about`."""
    console = Console()
    rows = []
    for name, path in recipes.available().items():
        about = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("about", "")
        rows.append([name, about.strip().split("\n")[0]])
    console.table("", ["recipe", "about"], rows, 2)


def replay_run(run: Path, names: Sequence[str]) -> None:
    """`ladder replay`: sends the metrics of all of a run's stages to the named trackers."""
    console = Console()
    for stage in lineage.stages(run):
        n_steps = trackers.replay(run / stage["name"], run.name, stage["name"], names)
        console.say(f"{stage['name']}: {n_steps} steps to {', '.join(names)}")
