"""The command eval: any model on any task, or as a recipe measures."""

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


def evaluate_model(
    model: str, task: str, recipe: str | None, reward: str | None, options: dict[str, Any], out: Path | None
) -> None:
    """ladder eval. With a recipe: its sets, rewards and settings; else one task as given."""
    spec = _asked(model, task, recipe, reward, options)
    assert spec.eval is not None
    torch.set_num_threads(spec.threads or os.cpu_count() or 1)
    loaded = load(model)
    sampler = samplers.sampler(spec, loaded)
    place = Place(spec, {}, loaded)
    written: dict[str, Any] = {"model": model, "results": []}
    console = Console()
    for name in spec.eval.sets:
        for temperature in spec.eval.temperatures:
            with _as_options():
                result = measure_set(place, sampler, name, temperature)
            figures = result.figures()
            console.say(f"[bold]{name}[/bold] T={temperature:g}, {result.n} problems: {line(figures)}")
            extra = {
                k: v for k, v in figures.items() if k.startswith("pass@") or k in ("thinking", "truncated", "unjudged")
            }
            console.say("  " + "  ".join(f"{k} {v:.4g}" for k, v in extra.items()))
            written["results"].append({"set": name, **figures, "answers": result.records})
    if out is not None:
        write_json(out, written)
        console.say(f"written to {out}")


def _asked(model: str, task: str, recipe: str | None, reward: str | None, options: dict[str, Any]) -> Recipe:
    """What is to be measured, and how, as a recipe of no stages."""
    if (recipe is None) == (not task):
        raise UserError("say what to measure on", field="--task", hint="give --task or --recipe, one of the two")
    if recipe is not None:
        spec, _ = recipes.load(recipe)
        if spec.eval is None:
            raise UserError("this recipe measures nothing", field="--recipe", hint="give --task instead")
        return spec.model_copy(update={"seed": options["seed"]})
    given = _yaml(reward, "--reward") if reward is not None else None
    asked = {"task": _yaml(task, "--task"), "split": options["split"], "n": options["n"]}
    sampling = {k: options[k] for k in ("max_tokens", "temperature", "stop")}
    made = {
        "sets": {"test": asked},
        "temperatures": (options["temperature"],),
        "samples": options["samples"],
        "pass_at": _ks(options),
        "sampling": sampling,
    }
    base = {"model": {"source": model}, "reward": given, "stages": {"none": {}}}
    base |= {"chat_template": options["chat_template"]}
    base |= {"seed": options["seed"]}
    try:
        return Recipe.model_validate(base | {"eval": made})
    except ValidationError as err:
        raise wrong(err) from err


@contextmanager
def _as_options() -> Iterator[None]:
    """Errors about the one set that the options describe name the option."""
    try:
        yield
    except UserError as err:
        if err.field and err.field.startswith("eval.sets.test."):
            err = UserError(err.message, field="--" + err.field.split(".")[3], hint=err.hint)
        raise err from None


def _ks(options: dict[str, Any]) -> tuple[int, ...]:
    """The k of --pass-at. Raises UserError."""
    words = [w.strip() for w in options["pass_at"].split(",") if w.strip()]
    samples = options["samples"] if options["temperature"] > 0 else 1
    for word in words:
        if not word.isdigit() or int(word) < 1:
            raise UserError(f"{word!r} is no number of answers", field="--pass-at", hint="write e.g. 1,4,16")
        if int(word) > samples:
            raise UserError(
                f"pass@{word} needs at least {word} answers to each problem, and there are {samples}",
                field="--pass-at",
                hint=f"add --samples {word}" if options["temperature"] > 0 else "set a temperature above 0",
            )
    return tuple(map(int, words))


def _yaml(text: str, field: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise UserError(f"{text!r} is not YAML", field=field) from err
