"""Who draws the answers that a stage of reinforcement learning is trained on: the policy, as it is or as it was some
updates ago, or another model.

    (nothing)                   the policy as it is: on-policy
    lag: 4                      the policy of four updates ago; of the stage's first model before there were as many
    rollouts: start             the stage's first model, as it was, to the end
    rollouts: {stage: NAME}     the model that an earlier stage made
    rollouts: {model: PATH}     any model with the policy's tokenizer

The log-probabilities of whoever drew are `old_logps`: a loss with a ratio corrects for the difference, one without does
not. Unless the policy draws, the first step cannot show that sampler and engine are the same, and is not asked to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ladder.base.config import Config
from ladder.base.errors import UserError
from ladder.contract.rollouts import Sampler
from ladder.contract.training import Weights
from ladder.models.load import LoadedModel
from ladder.pipeline.build import models, samplers
from ladder.pipeline.recipe import Recipe
from ladder.rollout.replica import Replica

OTHER = -1
"""The version of a model that never was the policy. The stage's first model has version 0."""


class StageRollouts(Config):
    """stage: whose model draws."""

    stage: str


class ModelRollouts(Config):
    """model: a directory, hub id or GGUF file."""

    model: str


Rollouts = Literal["own", "start"] | StageRollouts | ModelRollouts


@dataclass(frozen=True, slots=True)
class BehaviourPolicy:
    """The sampler of a stage's answers. load: what it does with new weights; None if it keeps those that it has.
    off_policy: it samples from a model that never was the policy. replica: what is saved with a checkpoint."""

    sampler: Sampler
    load: Callable[[Callable[[], Weights], int], None] | None
    off_policy: bool = False
    replica: Replica | None = None


def check(rollouts: Rollouts, lag: int, name: str) -> None:
    """Raises UserError for what contradicts itself."""
    if rollouts != "own" and lag:
        message = "is about the policy's own answers, and here another model draws"
        raise UserError(message, field=f"{name}.lag", hint="leave out lag or rollouts")


def files(rollouts: Rollouts) -> list[Path]:
    """What of it lies on this machine."""
    path = Path(rollouts.model).expanduser() if isinstance(rollouts, ModelRollouts) else None
    return [path] if path is not None and path.exists() else []


def behaviour_policy(
    recipe: Recipe, loaded: LoadedModel, rollouts: Rollouts, lag: int, parents: dict[str, Path], field: str
) -> BehaviourPolicy:
    """loaded: the policy, before any update. Raises UserError for a model that reads other tokens."""
    if rollouts == "own" and not lag:
        own = samplers.drawer(recipe, loaded)
        return BehaviourPolicy(own, own.load)
    if rollouts == "own":
        replica = Replica(samplers.sampler(recipe, _copy(loaded)), lag)
        return BehaviourPolicy(replica, replica.load, replica=replica)
    if rollouts == "start":
        return BehaviourPolicy(samplers.sampler(recipe, _copy(loaded)), None)
    source = str(parents[rollouts.stage] / "model") if isinstance(rollouts, StageRollouts) else rollouts.model
    other = models.load(recipe, source)
    other.model.requires_grad_(False)
    if not models.same_tokens(other, loaded):
        raise UserError("draws with another tokenizer than the policy's", field=field, hint="take a model of its kind")
    sampler = samplers.sampler(recipe, other)
    sampler.reweighted(OTHER)
    return BehaviourPolicy(sampler, None, off_policy=True)


def _copy(loaded: LoadedModel) -> LoadedModel:
    model: Any = copy.deepcopy(loaded.model)
    return replace(loaded, model=model.requires_grad_(False))
