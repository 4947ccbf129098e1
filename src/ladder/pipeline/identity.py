"""What makes a stage the one it is: a hash of its configuration, its inputs, its parents and the code.

Two stages of one identity give the same bytes, so a run does only what is missing. What changes no weight (names,
trackers, what is measured, how often it is saved) is not part of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from ladder.base.errors import UserError
from ladder.base.files import sha256
from ladder.pipeline import code
from ladder.pipeline.recipe import Recipe
from ladder.pipeline.stage import StageConfig


def describe(recipe: Recipe, config: StageConfig, parents: dict[str, str]) -> dict[str, Any]:
    """Everything a stage's result depends on. parents: {stage: its identity}. Raises UserError on a missing input."""
    model = recipe.model.model_dump(mode="json")
    inputs = config.inputs(recipe)
    if not config.from_:
        inputs += _local(recipe.model.source)
    else:
        model.pop("source")
    return {
        "config": _own(config),
        "seed": recipe.seed,
        "threads": recipe.threads,
        "model": model,
        "engine": recipe.engine.model_dump(mode="json"),
        "sampler": recipe.sampler.model_dump(mode="json"),
        "task": recipe.task,
        "reward": recipe.reward,
        "chat_template": recipe.chat_template,
        "inputs": {str(p): _hash(p) for p in inputs},
        "parents": parents,
        "code": code.identity(type(config).__module__),
    }


def of(description: dict[str, Any]) -> str:
    """The identity: a hash of the description."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()


def _own(config: StageConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"require", "eval_every"})


def _local(source: str) -> list[Path]:
    path = Path(source).expanduser()
    return [path] if path.exists() else []


def _hash(path: Path) -> str:
    if not path.exists():
        raise UserError("there is no such file", file=path)
    stat = path.stat()
    return _cached(str(path.resolve()), stat.st_mtime_ns, stat.st_size)


@functools.cache
def _cached(path: str, changed: int, size: int) -> str:
    """The hash of a file (or directory) as it was at that time."""
    return sha256(Path(path))
