"""A stage's model measured on the recipe's sets: figures with intervals, and the problems that the report shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladder import evals
from ladder.engine.checkpoint import read_json, write_json
from ladder.engine.model import LoadedModel
from ladder.errors import UserError
from ladder.pipeline import parts
from ladder.pipeline.progress import Console
from ladder.pipeline.recipe import EvalSet, EvalSpec
from ladder.pipeline.stage import Context


def evaluate_stage(ctx: Context, loaded: LoadedModel, step: int, *, final: bool = True) -> dict[str, Any]:
    """Every set at every temperature; {set: figures, with "greedy" beside}. final: also writes samples.json."""
    spec = ctx.recipe.eval
    if spec is None:
        return {}
    sampler = parts.sampler(ctx.recipe, loaded)
    summary: dict[str, Any] = {}
    shown: list[dict[str, Any]] = []
    total = len(spec.sets) * len(spec.temperatures)
    with ctx.console.bar(f"{ctx.name}: measuring", total) as bar:
        for name, one in spec.sets.items():
            results = {}
            for temperature in spec.temperatures:
                results[temperature] = _one(ctx, loaded, sampler, spec, name, one, temperature)
                ctx.log.evals.write({"step": step, "set": name} | results[temperature].figures())
                bar.update(bar.done + 1, {})
                ctx.check_stop()
            first = results[spec.temperatures[0]]
            summary[name] = summary_of(results, spec.temperatures[0])
            shown += [{"set": name} | r for r in first.records[: spec.show * first.samples : first.samples]]
    if final:
        write_json(ctx.directory / "samples.json", shown)
    return summary


def summary_of(results: dict[float, evals.EvalResult], first: float) -> dict[str, Any]:
    """The figures at the first temperature, those at 0 under "greedy"."""
    figures = results[first].figures()
    if first != 0 and 0.0 in results:
        figures["greedy"] = results[0.0].figures()
    return figures


def _one(
    ctx: Context, loaded: LoadedModel, sampler: Any, spec: EvalSpec, name: str, one: EvalSet, temperature: float
) -> evals.EvalResult:
    field = f"eval.sets.{name}"
    source = parts.tasks(one.task, f"{field}.task")
    if one.split not in source.splits:
        raise UserError(f"there is no split {one.split!r} (there are: {', '.join(source.splits)})", field=field)
    samples = spec.samples if temperature > 0 else 1
    return evals.evaluate(
        sampler,
        source.tasks(one.split, one.n),
        parts.reward(one.reward if one.reward is not None else ctx.recipe.reward, f"{field}.reward"),
        parts.encoder(ctx.recipe, loaded),
        parts.sampling(spec.sampling, temperature=temperature),
        samples=samples,
        seed=ctx.seed,
        ks=[k for k in spec.pass_at if k <= samples],
        stats=parts.stats(one.task),
    )


def show(console: Console, directory: Path, summary: dict[str, Any], most: int = 3) -> None:
    """A line of figures for each set, and a few answers of the first."""
    for name, figures in summary.items():
        if isinstance(figures, dict) and "accuracy" in figures:
            console.say(f"  [bold]{name}[/bold]: " + line(figures))
    path = directory / "samples.json"
    samples = read_json(path) if path.exists() else []
    console.samples([(mark(s["reward"]), str(s["prompt"]), s["text"]) for s in samples[:most]])


def mark(reward: float | None) -> str:
    """Right, wrong, or not judged."""
    return "[yellow]?[/yellow]" if reward is None else "[green]✓[/green]" if reward >= 1 else "[red]✗[/red]"


def line(figures: dict[str, Any]) -> str:
    low, high = figures.get("low"), figures.get("high")
    text = f"{figures['accuracy']:.1%} right"
    text += f" ({low:.1%} to {high:.1%})" if low is not None and high is not None else ""
    if "greedy" in figures:
        text += f", greedy {figures['greedy']['accuracy']:.1%}"
    text += f", {figures['length']:.1f} tokens"
    return text + (f", mixed {figures['mixed']:.1%}" if "mixed" in figures else "")
