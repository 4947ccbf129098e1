"""The behaviour policy of a stage of reinforcement learning: the model that samples the rollouts it is trained on. That
is the policy itself, the policy of some updates ago, or another model.

    (nothing)                   the current policy: on-policy
    lag: 4                      the policy of four updates ago; in the first four steps the stage's initial model
    rollouts: start             the stage's initial model, frozen, in all steps
    rollouts: {stage: NAME}     the model that an earlier stage made
    rollouts: {model: PATH}     any model with the policy's tokenizer

`old_logps` are the log-probabilities of the behaviour policy: a loss with a ratio corrects for the difference from the
policy, a loss without one does not. The check of the first update that the ratio is 1 (sampler and engine agree) holds
only if the behaviour policy equals the policy, and is left out otherwise.
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
"""The version of a behaviour policy that never was the policy. The stage's initial model has version 0."""


class StageRollouts(Config):
    """stage: the stage whose model samples the rollouts."""

    stage: str


class ModelRollouts(Config):
    """model: a directory, hub id or GGUF file."""

    model: str


Rollouts = Literal["own", "start"] | StageRollouts | ModelRollouts


@dataclass(frozen=True, slots=True)
class BehaviourPolicy:
    """The sampler of a stage's rollouts. load: hands the policy's new weights to the sampler; None if its weights are
    fixed. off_policy: it samples from a model that never was the policy. replica: the lagged copy of the policy, whose
    state is saved with a checkpoint; None without lag."""

    sampler: Sampler
    load: Callable[[Callable[[], Weights], int], None] | None
    off_policy: bool = False
    replica: Replica | None = None


def check(rollouts: Rollouts, lag: int, name: str) -> None:
    """Raises UserError if both `rollouts` and `lag` are set."""
    if rollouts != "own" and lag:
        message = "delays the policy's own rollouts, but `rollouts` names another model to sample from"
        raise UserError(message, field=f"{name}.lag", hint="leave out lag or rollouts")


def files(rollouts: Rollouts) -> list[Path]:
    """The model's path if it is on this machine."""
    path = Path(rollouts.model).expanduser() if isinstance(rollouts, ModelRollouts) else None
    return [path] if path is not None and path.exists() else []


def behaviour_policy(
    recipe: Recipe, loaded: LoadedModel, rollouts: Rollouts, lag: int, parents: dict[str, Path], field: str
) -> BehaviourPolicy:
    """Builds a stage's behaviour policy. loaded: the policy before any update. parents: directories of the earlier
    stages. field: of the recipe, for errors. Raises UserError for a model with another tokenizer than the policy's."""
    if rollouts == "own" and not lag:
        policy_sampler = samplers.rollout_sampler(recipe, loaded)
        return BehaviourPolicy(policy_sampler, policy_sampler.load)
    if rollouts == "own":
        replica = Replica(samplers.native_sampler(recipe, _frozen_copy(loaded)), lag)
        return BehaviourPolicy(replica, replica.load, replica=replica)
    if rollouts == "start":
        return BehaviourPolicy(samplers.native_sampler(recipe, _frozen_copy(loaded)), None)
    source = str(parents[rollouts.stage] / "model") if isinstance(rollouts, StageRollouts) else rollouts.model
    other = models.load(recipe, source)
    other.model.requires_grad_(False)
    if not models.same_tokens(other, loaded):
        hint = "take a model with the policy's tokenizer"
        raise UserError("the model's tokenizer is not the policy's", field=field, hint=hint)
    sampler = samplers.native_sampler(recipe, other)
    sampler.reweighted(OTHER)
    return BehaviourPolicy(sampler, None, off_policy=True)


def _frozen_copy(loaded: LoadedModel) -> LoadedModel:
    model: Any = copy.deepcopy(loaded.model)
    return replace(loaded, model=model.requires_grad_(False))
