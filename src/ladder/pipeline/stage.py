"""What every stage has in common: the base class of its configuration, its context in the run, the stop request."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ladder.base.config import Config
from ladder.base.errors import UserError
from ladder.contract.training import Loss
from ladder.engine.optim import Optim
from ladder.models.lora import LoRA
from ladder.pipeline.artifacts import ARTIFACTS, Artifact, Makes
from ladder.pipeline.build import losses, named
from ladder.pipeline.recipe import Recipe, Spec
from ladder.tracking.console import Console
from ladder.tracking.log import RunLog


class StageConfig(Config):
    """from: the stage whose model this one starts from; without it, the recipe's model. require: bounds on the
    stage's figures (`{easy.accuracy: ">= 0.9"}`); the run stops if one does not hold."""

    kind: str
    from_: str | None = Field(default=None, alias="from")
    require: dict[str, str] = Field(default_factory=dict)

    named: ClassVar[str] = ""
    """The name of this kind of stage in recipes; empty for a base class of other kinds."""
    begins: ClassVar[bool] = False
    """Whether the stage's model is the base model of a run, from which the KL of later policies is measured."""
    makes: ClassVar[Makes] = "model"
    """The artifact that the stage writes: `model/`, `data.jsonl`, only its summary, or a reward model in `model/`."""

    @property
    def artifact(self) -> Artifact:
        """The description of what the stage writes."""
        return ARTIFACTS[self.makes]

    def needs(self, recipe: Recipe) -> list[tuple[str, Makes]]:
        """The earlier stages whose results this stage reads, each with the type of artifact that it must write."""
        return [(self.from_, "model")] if self.from_ else []

    def inputs(self, recipe: Recipe) -> list[Path]:
        """The files that the stage reads: their hashes are part of its identity."""
        return []

    def check(self, name: str, recipe: Recipe) -> None:
        """Checks the stage without executing a user's code (a plan executes none). Raises UserError."""

    def prepare(self, name: str, recipe: Recipe) -> None:
        """Executes the user's code that the stage names, and checks what only that shows. Called for every stage before
        the first one runs. Raises UserError."""

    def run(self, ctx: Context) -> dict[str, Any]:
        """Does the stage's work in `ctx.directory`; returns the figures that it adds to the stage's summary."""
        raise NotImplementedError


class Trained(StageConfig):
    """A stage that trains. optim: the optimiser. lora: the stage's adapter, or false to train all weights; null takes
    the recipe's. eval_every: steps between evaluations during training (0: only at the end)."""

    optim: Optim = Optim()
    lora: LoRA | Literal[False] | None = None
    eval_every: int = Field(default=0, ge=0)
    loss: Spec

    def inputs(self, recipe: Recipe) -> list[Path]:
        return [*super().inputs(recipe), *named.sources(self.loss, "loss")]

    def check(self, name: str, recipe: Recipe) -> None:
        super().check(name, recipe)
        loss = losses.known_loss(self.loss, f"{name}.loss")
        if loss is not None:
            self.check_loss(loss, name, recipe)

    def prepare(self, name: str, recipe: Recipe) -> None:
        super().prepare(name, recipe)
        self.check_loss(losses.loss(self.loss, f"{name}.loss"), name, recipe)

    def check_loss(self, loss: Loss, name: str, recipe: Recipe) -> None:
        """Raises UserError for a loss that this kind of stage cannot train with."""


class Interrupted(Exception):
    """The user asked the run to stop; all state is saved."""


@dataclass(slots=True)
class StopRequest:
    """Whether a signal asked the run to stop: set by the signal handler, read between two steps. signum: the signal, 0
    for none."""

    signum: int = 0

    def __bool__(self) -> bool:
        return self.signum != 0


@dataclass(slots=True)
class Context:
    """One stage of one run: its directory, its recipe, its input models, its log and console.

    parents: directories of the stages it needs. base: source of the base model, the pretrained one that the stage's
    model descends from (the KL from it is logged). before: seconds spent on the stage by earlier, interrupted runs.
    begun: time.monotonic() at which this run began the stage.
    """

    name: str
    directory: Path
    recipe: Recipe
    parents: dict[str, Path]
    base: str
    log: RunLog
    console: Console
    stop: StopRequest
    before: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def seconds(self) -> float:
        """Seconds spent on the stage so far, earlier runs included."""
        return self.before + time.monotonic() - self.begun

    def adapter(self, config: Trained) -> LoRA | None:
        """The adapter that a stage trains; None if it trains all weights."""
        return self.recipe.model.lora if config.lora is None else config.lora or None

    def model_source(self, config: StageConfig) -> str:
        """The directory, hub id or preset that the stage's model is loaded from."""
        return str(self.parents[config.from_] / "model") if config.from_ else self.recipe.model.source

    def local(self, config: StageConfig) -> bool:
        """Whether the stage's model lies on this machine."""
        return Path(self.model_source(config)).exists()

    def error(self, message: str, field: str, hint: str | None = None) -> UserError:
        """A UserError at a field of this stage."""
        return UserError(message, field=f"{self.name}.{field}", hint=hint)

    def check_stop(self) -> None:
        """Raises Interrupted if the user asked the run to stop."""
        if self.stop:
            raise Interrupted
