"""What several commands have in common: a model by any name, sampling settings, values that an option cannot have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ladder.base.errors import UserError
from ladder.contract.rollouts import Sampling
from ladder.models.load import LoadedModel, load_model
from ladder.pipeline.recipe import SamplingSpec


def load(source: str, *, dtype: str = "float32") -> LoadedModel:
    """A model by any name a user may give, a stage of a run among them."""
    path = Path(source)
    if (path / "model" / "config.json").is_file():
        source = str(path / "model")
    if source.startswith("preset:"):
        raise UserError("a preset has random weights: there is nothing to see in it", field="--model")
    return load_model(source, dtype=dtype)


def sampling(settings: dict[str, Any]) -> Sampling:
    """Raises UserError naming the option."""
    try:
        return Sampling(**SamplingSpec(**settings).model_dump())
    except ValidationError as err:
        raise wrong(err) from err


def wrong(err: ValidationError) -> UserError:
    """A value that an option cannot have."""
    first = err.errors()[0]
    names = [str(p) for p in first["loc"] if str(p) in ("n", "samples", "temperature", "max_tokens", "task", "top_p")]
    field = f"--{names[-1].replace('_', '-')}" if names else ".".join(map(str, first["loc"]))
    return UserError(f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}", field=field)
