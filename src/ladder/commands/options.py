"""Option handling shared by several commands: loading a model, sampling settings, errors that name the option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ladder.base.errors import UserError
from ladder.contract.rollouts import Sampling
from ladder.models.load import LoadedModel, load_model
from ladder.pipeline.recipe import SamplingSpec


def load(source: str, *, dtype: str = "float32") -> LoadedModel:
    """Loads a model from a hub id, a directory, a .gguf file or the directory of a run's stage. Raises UserError."""
    path = Path(source)
    if (path / "model" / "config.json").is_file():
        source = str(path / "model")
    if source.startswith("preset:"):
        raise UserError("a preset has random weights", field="--model", hint="give a trained model")
    return load_model(source, dtype=dtype)


def sampling(settings: dict[str, Any]) -> Sampling:
    """Sampling settings from a command's options. Raises UserError that names the invalid option."""
    try:
        return Sampling(**SamplingSpec(**settings).model_dump())
    except ValidationError as err:
        raise wrong(err) from err


def wrong(err: ValidationError) -> UserError:
    """A UserError for an invalid option value, naming the option that the validation error's location belongs to."""
    first = err.errors()[0]
    options = ("n", "samples", "temperature", "max_tokens", "task", "top_p")
    names = [str(part) for part in first["loc"] if str(part) in options]
    field = f"--{names[-1].replace('_', '-')}" if names else ".".join(map(str, first["loc"]))
    return UserError(f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}", field=field)
