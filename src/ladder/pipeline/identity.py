"""The identity of a stage: a hash of its configuration, its inputs, its parents and the code.

Two stages with the same identity write the same bytes, so a run executes only the stages that are missing. Settings
that change no weight (names, trackers, evaluations, how often checkpoints are saved) are not part of the identity.
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
    """Everything that a stage's result depends on. parents: {stage: its identity}. Raises UserError for a missing input
    file."""
    model = recipe.model.model_dump(mode="json")
    inputs = config.inputs(recipe)
    if not config.from_:
        inputs += _local_paths(recipe.model.source)
    else:
        model.pop("source")
    return {
        "config": _result_fields(config),
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


def _result_fields(config: StageConfig) -> dict[str, Any]:
    """The stage's fields without those that do not change its result."""
    return config.model_dump(mode="json", exclude={"require", "eval_every"})


def _local_paths(source: str) -> list[Path]:
    """The model's path if it is on this machine; empty for a hub id or a preset."""
    path = Path(source).expanduser()
    return [path] if path.exists() else []


def _hash(path: Path) -> str:
    """The hash of a file or directory. Raises UserError if it does not exist."""
    if not path.exists():
        raise UserError("there is no such file", file=path)
    stat = path.stat()
    return _hash_at(str(path.resolve()), stat.st_mtime_ns, stat.st_size)


@functools.cache
def _hash_at(path: str, changed: int, size: int) -> str:
    """The hash of a file or directory, cached by its modification time and size."""
    return sha256(Path(path))
