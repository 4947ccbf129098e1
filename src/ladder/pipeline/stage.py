"""What every stage has in common: its configuration's base, its place in the run, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field

from ladder.config import Config
from ladder.log import RunLog
from ladder.pipeline.progress import Console
from ladder.pipeline.recipe import Recipe


class StageConfig(Config):
    """from: the stage whose model this one starts from; without it, the recipe's model. require: bounds on the
    stage's own figures (`{easy.accuracy: ">= 0.9"}`) without which the run stops."""

    kind: str
    from_: str | None = Field(None, alias="from")
    require: dict[str, str] = Field(default_factory=dict)

    makes: ClassVar[str] = "model"
    """What the stage leaves behind: "model" or "data"."""

    def needs(self) -> list[str]:
        """Stages whose results this one reads."""
        return [self.from_] if self.from_ else []

    def inputs(self) -> list[Path]:
        """Files it reads: their hashes are part of its identity."""
        return []

    def run(self, ctx: Context) -> None:
        raise NotImplementedError


class Interrupted(Exception):
    """The user asked the run to stop; everything is saved."""


@dataclass(slots=True)
class Stop:
    """Set by a signal; asked between steps."""

    signum: int = 0

    def __bool__(self) -> bool:
        return self.signum != 0


@dataclass(slots=True)
class Context:
    """One stage of one run: where it writes, what it starts from, whom it tells."""

    name: str
    directory: Path
    recipe: Recipe
    parents: dict[str, Path]  # stage -> its directory
    origin: str  # the model at the root of the `from` chain
    log: RunLog
    console: Console
    stop: Stop
    seed: int
    seconds_before: float = 0.0  # spent on it by earlier, interrupted runs
    clock: Callable[[], float] = field(default=lambda: 0.0)  # seconds spent on it so far, in all runs
    summary: dict[str, Any] = field(default_factory=dict)

    def model_source(self, config: StageConfig) -> str:
        """What the stage's model is loaded from."""
        return str(self.parents[config.from_] / "model") if config.from_ else self.recipe.model.source

    def check_stop(self) -> None:
        if self.stop:
            raise Interrupted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()
