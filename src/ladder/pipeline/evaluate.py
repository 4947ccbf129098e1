"""Evaluation of a stage's model on the recipe's evaluation sets: figures with confidence intervals, and the answers
that the report shows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ladder.base.errors import UserError
from ladder.base.files import read_json, sha256, write_json
from ladder.contract.rollouts import Reward, Sampler
from ladder.evals import accuracy
from ladder.models.load import LoadedModel
from ladder.pipeline.build import rewards, samplers, tasks
from ladder.pipeline.build.rewards import Place, RewardPlan
from ladder.pipeline.recipe import EvalSet, Recipe
from ladder.pipeline.stage import Context
from ladder.tasks import TaskSource
from ladder.tracking.console import Bar, Console


def check(recipe: Recipe) -> None:
    """Raises UserError for a set whose task, split or reward does not exist. Executes none of the user's code."""
    for name, eval_set in _sets(recipe).items():
        tasks.check(eval_set.task, eval_set.split, f"eval.sets.{name}")
        _reward(recipe, name)


def prepare(recipe: Recipe) -> None:
    """Executes the user's code that the sets name. Raises UserError."""
    for name, eval_set in _sets(recipe).items():
        _source(name, eval_set)
        _reward(recipe, name).start()


def scorers(recipe: Recipe) -> list[tuple[str, str]]:
    """(field, stage) of every stage whose reward model judges a set."""
    return [(f"eval.sets.{n}.reward", stage) for n in _sets(recipe) for stage in _reward(recipe, n).stages]


def identity(recipe: Recipe, keys: Mapping[str, str]) -> str:
    """A hash of the evaluation after a stage: the sets, their files, the settings, and the reward models that exist by
    then. It is not part of the stage's identity, so a changed evaluation needs no new training. keys: identities of the
    stages so far."""
    if recipe.eval is None:
        return ""
    sets = _sets(recipe)
    files = [p for name in sets for p in (*tasks.files(sets[name].task), *_reward(recipe, name).files)]
    lines = [recipe.eval.model_dump_json(), *(f"{path} {sha256(path) if path.exists() else ''}" for path in files)]
    lines += [f"{stage} {keys[stage]}" for _, stage in scorers(recipe) if stage in keys]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sets(recipe: Recipe) -> Mapping[str, EvalSet]:
    return recipe.eval.sets if recipe.eval else {}


def _reward(recipe: Recipe, name: str) -> RewardPlan:
    """The reward that judges a set. Raises UserError."""
    return rewards.parse(recipe, _sets(recipe)[name].reward, f"eval.sets.{name}.reward")


def _source(name: str, eval_set: EvalSet) -> TaskSource:
    """The source of a set's tasks."""
    return tasks.tasks_of(eval_set.task, eval_set.split, f"eval.sets.{name}")


def during(ctx: Context, loaded: LoadedModel) -> Callable[[int], None]:
    """The function that evaluates the model during training: all sets, logged at the given step."""

    def evaluate(step: int) -> None:
        evaluate_stage(ctx, loaded, step, final=False)

    return evaluate


def evaluate_stage(ctx: Context, loaded: LoadedModel, step: int, *, final: bool = True) -> dict[str, Any]:
    """Evaluates every set at every temperature. Returns {set: figures at the first temperature, and at 0 under
    "greedy"}. final: also writes samples.json."""
    spec = ctx.recipe.eval
    if spec is None:
        return {}
    sampler = samplers.native_sampler(ctx.recipe, loaded)
    summary: dict[str, Any] = {}
    shown: list[dict[str, Any]] = []
    names = [name for name in spec.sets if set(_reward(ctx.recipe, name).stages) <= ctx.parents.keys()]
    for name in [*spec.sets] if final else []:
        if name not in names:
            judges = ", ".join(_reward(ctx.recipe, name).stages)
            ctx.console.say(f"  {name} is not evaluated here: its judge, {judges}, is trained later")
    place = Place(ctx.recipe, ctx.parents, loaded)
    with ctx.console.bar(f"{ctx.name}: measuring", len(names) * len(spec.temperatures)) as bar:
        sampler.progress = lambda done, total: watch(ctx, bar, done, total)
        for name in names:
            results, reward = {}, _reward(ctx.recipe, name).build(place)
            for temperature in spec.temperatures:
                results[temperature] = measure(place, sampler, reward, name, temperature)
                ctx.log.evals.write({"step": step, "set": name} | results[temperature].figures())
                bar.update(bar.done + 1, {})
                ctx.check_stop()
            first = results[spec.temperatures[0]]
            summary[name] = summary_of(results, spec.temperatures[0])
            shown += [{"set": name} | r for r in first.records[: spec.show * first.samples : first.samples]]
    if final:
        write_json(ctx.directory / "samples.json", shown)
    return summary


def watch(ctx: Context, bar: Bar, done: int, total: int) -> None:
    """Shows the progress of a long evaluation, and raises Interrupted if the user asks for a stop; a resumed run
    repeats the evaluation."""
    bar.note(f"{done:,} of {total:,} answers")
    ctx.check_stop()


def summary_of(results: dict[float, accuracy.EvalResult], first: float) -> dict[str, Any]:
    """A set's figures at the first temperature, with those at temperature 0 under "greedy"."""
    figures = results[first].figures()
    if first != 0 and 0.0 in results:
        figures["greedy"] = results[0.0].figures()
    return figures


def measure(place: Place, sampler: Sampler, reward: Reward, name: str, temperature: float) -> accuracy.EvalResult:
    """Evaluates one of the recipe's sets at one temperature. Raises UserError."""
    spec, eval_set = place.recipe.eval, _sets(place.recipe)[name]
    assert spec is not None
    samples = spec.samples if temperature > 0 else 1
    return accuracy.evaluate(
        sampler,
        _source(name, eval_set).tasks(eval_set.split, eval_set.n),
        reward,
        samplers.encoder(place.recipe, place.policy),
        samplers.sampling(eval_set.sampling or spec.sampling, temperature=temperature),
        samples=samples,
        seed=place.recipe.seed,
        ks=[k for k in spec.pass_at if k <= samples],
        stats=tasks.stats(eval_set.task),
    )


def measure_set(place: Place, sampler: Sampler, name: str, temperature: float) -> accuracy.EvalResult:
    """`measure` outside a run. Raises UserError for a set that is judged by the reward model of a stage."""
    _source(name, _sets(place.recipe)[name])
    plan = _reward(place.recipe, name)
    if plan.stages:
        message = f"is judged by the reward model of stage {plan.stages[0]!r}, but there is no run to take it from"
        raise UserError(message, field=plan.field, hint="name its directory: {model: runs/NAME/STAGE/model}")
    return measure(place, sampler, plan.build(place), name, temperature)


def show(console: Console, directory: Path, summary: dict[str, Any], most: int = 3) -> None:
    """Prints a line of figures for each set, and the first `most` answers of samples.json."""
    for name, figures in summary.items():
        if isinstance(figures, dict) and "length" in figures:
            console.say(f"  [bold]{name}[/bold]: " + line(figures))
    path = directory / "samples.json"
    samples = read_json(path) if path.exists() else []
    console.samples([(mark(s["reward"]), str(s["prompt"]), s["text"]) for s in samples[:most]])


def mark(reward: float | None) -> str:
    """The mark of an answer on the console: right, wrong, or not judged."""
    return "[yellow]?[/yellow]" if reward is None else "[green]✓[/green]" if reward >= 1 else "[red]✗[/red]"


def number(value: float, figures: dict[str, Any]) -> str:
    """A figure as text: a share in per cent, or a mean score if the set is graded."""
    return f"{value:.3f}" if figures.get("graded") else f"{value:.1%}"


def line(figures: dict[str, Any]) -> str:
    """A set's figures as one line: the share of right answers, or a mean score, and the parts of the score."""
    low, high = figures.get("low"), figures.get("high")
    right = number(figures["accuracy"], figures)
    text = f"score {right}" if figures.get("graded") else f"{right} right"
    text += f" ({number(low, figures)} to {number(high, figures)})" if low is not None and high is not None else ""
    text += f", greedy {number(figures['greedy']['accuracy'], figures)}" if "greedy" in figures else ""
    text += f", {figures['length']:.1f} tokens"
    text += f", mixed {figures['mixed']:.1%}" if "mixed" in figures else ""
    parts = {k.removeprefix("score/"): v for k, v in figures.items() if k.startswith("score/")}
    return text + "".join(f", {k} {v:.2f}" for k, v in parts.items())
