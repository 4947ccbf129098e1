"""`ladder eval`: evaluates any model on a task given by options, or on the evaluation sets of a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from ladder.base.errors import UserError
from ladder.base.files import write_json
from ladder.commands.options import load, wrong
from ladder.pipeline import recipe as recipes
from ladder.pipeline.build import samplers
from ladder.pipeline.build.rewards import Place
from ladder.pipeline.evaluate import line, measure_set
from ladder.pipeline.recipe import Recipe
from ladder.tracking.console import Console


def eval_model(
    model: str, task: str, recipe: str | None, reward: str | None, options: dict[str, Any], out: Path | None
) -> None:
    """`ladder eval`. recipe: evaluate on its sets with its rewards and settings; else on `task` with `options`.

    out: a JSON file for the figures and answers. Raises UserError.
    """
    spec = _eval_recipe(model, task, recipe, reward, options)
    assert spec.eval is not None
    torch.set_num_threads(spec.threads or os.cpu_count() or 1)
    loaded = load(model)
    sampler = samplers.native_sampler(spec, loaded)
    place = Place(spec, {}, loaded)
    report: dict[str, Any] = {"model": model, "results": []}
    console = Console()
    for name in spec.eval.sets:
        for temperature in spec.eval.temperatures:
            with _errors_name_options():
                result = measure_set(place, sampler, name, temperature)
            figures = result.figures()
            console.say(f"[bold]{name}[/bold] T={temperature:g}, {result.n} problems: {line(figures)}")
            details = {
                k: v for k, v in figures.items() if k.startswith("pass@") or k in ("thinking", "truncated", "unjudged")
            }
            console.say("  " + "  ".join(f"{k} {v:.4g}" for k, v in details.items()))
            report["results"].append({"set": name, **figures, "answers": result.records})
    if out is not None:
        write_json(out, report)
        console.say(f"written to {out}")


def _eval_recipe(model: str, task: str, recipe: str | None, reward: str | None, options: dict[str, Any]) -> Recipe:
    """The evaluation as a recipe: the given one, else one with a placeholder stage and one set named "test"."""
    if (recipe is None) == (not task):
        raise UserError("no task to evaluate on", field="--task", hint="give --task or --recipe, one of the two")
    if recipe is not None:
        spec, _ = recipes.load(recipe)
        if spec.eval is None:
            raise UserError("this recipe has no `eval` section", field="--recipe", hint="give --task instead")
        return spec.model_copy(update={"seed": options["seed"]})
    reward_spec = _parse_yaml(reward, "--reward") if reward is not None else None
    test_set = {"task": _parse_yaml(task, "--task"), "split": options["split"], "n": options["n"]}
    eval_section = {
        "sets": {"test": test_set},
        "temperatures": (options["temperature"],),
        "samples": options["samples"],
        "pass_at": _pass_at(options),
        "sampling": {k: options[k] for k in ("max_tokens", "temperature", "stop")},
    }
    base = {"model": {"source": model}, "reward": reward_spec, "stages": {"none": {}}}
    base |= {"chat_template": options["chat_template"]}
    base |= {"seed": options["seed"]}
    try:
        return Recipe.model_validate(base | {"eval": eval_section})
    except ValidationError as err:
        raise wrong(err) from err


@contextmanager
def _errors_name_options() -> Iterator[None]:
    """Rewrites errors about the recipe field `eval.sets.test.X`, which the user never wrote, to name the option --X."""
    try:
        yield
    except UserError as err:
        if err.field and err.field.startswith("eval.sets.test."):
            err = UserError(err.message, field="--" + err.field.split(".")[3], hint=err.hint)
        raise err from None


def _pass_at(options: dict[str, Any]) -> tuple[int, ...]:
    """The values of k in --pass-at. Raises UserError."""
    k_texts = [text.strip() for text in options["pass_at"].split(",") if text.strip()]
    samples = options["samples"] if options["temperature"] > 0 else 1
    for text in k_texts:
        if not text.isdigit() or int(text) < 1:
            raise UserError(f"{text!r} is not a positive integer", field="--pass-at", hint="write e.g. 1,4,16")
        if int(text) > samples:
            raise UserError(
                f"pass@{text} needs at least {text} answers to each problem, but {samples} are sampled",
                field="--pass-at",
                hint=f"add --samples {text}" if options["temperature"] > 0 else "set a temperature above 0",
            )
    return tuple(map(int, k_texts))


def _parse_yaml(text: str, field: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise UserError(f"{text!r} is not YAML", field=field) from err
