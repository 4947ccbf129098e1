"""What every stage has in common: its configuration's base, its place in the run, and what it is told."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ladder.base.config import Config
from ladder.base.errors import UserError
from ladder.engine.optim import Optim
from ladder.models.lora import LoRA
from ladder.pipeline.recipe import Recipe
from ladder.tracking.console import Console
from ladder.tracking.log import RunLog

Makes = Literal["model", "data", "figures", "scorer"]


class StageConfig(Config):
    """from: the stage whose model this one starts from; without it, the recipe's model. require: bounds on the
    stage's own figures (`{easy.accuracy: ">= 0.9"}`) without which the run stops."""

    kind: str
    from_: str | None = Field(default=None, alias="from")
    require: dict[str, str] = Field(default_factory=dict)

    named: ClassVar[str] = ""
    """The name that recipes give this kind of stage; empty for one that other kinds are built on."""
    begins: ClassVar[bool] = False
    """Whether its model is where a chain of models begins: the base that a KL is measured from."""
    makes: ClassVar[Makes] = "model"
    """What the stage leaves behind: `model/`, `data.jsonl`, nothing but its summary, or a `model/` that scores."""

    def needs(self, recipe: Recipe) -> list[tuple[str, Makes]]:
        """Stages whose results this one reads, and what they have to have made."""
        return [(self.from_, "model")] if self.from_ else []

    def inputs(self, recipe: Recipe) -> list[Path]:
        """Files it reads: their hashes are part of its identity."""
        return []

    def check(self, name: str, recipe: Recipe) -> None:
        """Raises UserError for what can be known to be wrong without executing a user's code (a plan executes none)."""

    def prepare(self, name: str, recipe: Recipe) -> None:
        """Executes the user's code that the stage names. Raises UserError for what only that shows to be wrong; called
        for every stage before the first one runs."""

    def run(self, ctx: Context) -> dict[str, Any]:
        """Does the stage's work in `ctx.directory`; returns what it adds to the stage's summary."""
        raise NotImplementedError


class Trained(StageConfig):
    """A stage that trains. optim: the optimiser. lora: an adapter of its own, or false for all weights; null takes the
    recipe's. eval_every: steps between evaluations on the way (0: at the end)."""

    optim: Optim = Optim()
    lora: LoRA | Literal[False] | None = None
    eval_every: int = Field(default=0, ge=0)


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
    """One stage of one run: where it writes, what it starts from, whom it tells.

    parents: directories of the stages it needs. base: what the chain of models started from before anything but
    pretraining touched it (the KL from it is logged). before: seconds spent on the stage by earlier, interrupted runs.
    """

    name: str
    directory: Path
    recipe: Recipe
    parents: dict[str, Path]
    base: str
    log: RunLog
    console: Console
    stop: Stop
    before: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def seconds(self) -> float:
        """Spent on the stage so far, earlier runs included."""
        return self.before + time.monotonic() - self.begun

    def adapter(self, config: Trained) -> LoRA | None:
        """The adapter that a stage trains; None for all weights."""
        return self.recipe.model.lora if config.lora is None else config.lora or None

    def model_source(self, config: StageConfig) -> str:
        """What the stage's model is loaded from."""
        return str(self.parents[config.from_] / "model") if config.from_ else self.recipe.model.source

    def local(self, config: StageConfig) -> bool:
        """Whether the stage's model lies on this machine."""
        return Path(self.model_source(config)).exists()

    def error(self, message: str, field: str, hint: str | None = None) -> UserError:
        return UserError(message, field=f"{self.name}.{field}", hint=hint)

    def check_stop(self) -> None:
        if self.stop:
            raise Interrupted
