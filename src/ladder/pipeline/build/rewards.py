"""The one builder of rewards: whatever judges, wherever a recipe names it, is parsed and built here.

    reward: math                                     a kind of reward (`ladder.rewards.recipe`), or a world's own
    reward: {kind: user, function: "file.py:name"}   a function of the user's
    reward: {stage: reward_model}                    the reward model of an earlier stage
    reward: {model: path-or-hub-id}                  one that was trained elsewhere, with the policy's tokenizer
    reward: {ensemble: [rm_a, rm_b, {model: ...}]}   several: their mean; aggregate: min, or uncertainty
    reward: [{stage: reward_model}, {kind: format, weight: 0.2}]

The same words serve as reward, judge of annotators, watched reward, and reward of an evaluation set. `parse` reads them
without loading a model or executing a user's code; `RewardPlan.start` executes the user's code, `build` loads models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from ladder.base import config
from ladder.base.config import Config
from ladder.base.errors import UserError
from ladder.contract.rollouts import Reward
from ladder.models.load import LoadedModel
from ladder.pipeline.build import models
from ladder.pipeline.build.tasks import OwnReward, named_rewards
from ladder.pipeline.recipe import Recipe, Spec
from ladder.rewards.combine import Part
from ladder.rewards.guarded import guard
from ladder.rewards.recipe import Component, combined, component, items, kinds, weight_of
from ladder.signals.model_reward import Aggregate, Member, ModelReward
from ladder.tasks import is_foreign


class StageScorer(Config):
    """stage: that made a reward model."""

    stage: str


class PathScorer(Config):
    """model: a directory or hub id of a sequence classifier with one label."""

    model: str


class Ensemble(Config):
    """ensemble: stages, or models. aggregate: their mean, their least, or mean - penalty * variance."""

    ensemble: tuple[str | PathScorer, ...] = Field(min_length=2)
    aggregate: Aggregate = "mean"
    penalty: float = Field(default=1.0, ge=0)


Scorer = StageScorer | PathScorer | Ensemble
SCORERS: dict[str, type[Scorer]] = {"stage": StageScorer, "model": PathScorer, "ensemble": Ensemble}
"""Reward models by the key that names them."""


@dataclass(frozen=True, slots=True)
class ModelComponent:
    """A reward model, or several as one, as a recipe names it. name: of its score beside other rewards. plain: it has
    no weight and no name of its own, so that alone it is the whole reward."""

    scorer: Scorer
    weight: float
    name: str
    field: str
    plain: bool

    @property
    def members(self) -> tuple[str | PathScorer, ...]:
        """Stages' names, and models from elsewhere."""
        match self.scorer:
            case StageScorer(stage=stage):
                return (stage,)
            case PathScorer() as one:
                return (one,)
            case Ensemble(ensemble=members):
                return members


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reward is built. parents: the directories of earlier stages. policy: the model whose rollouts are
    judged, which a reward model has to share its tokenizer with."""

    recipe: Recipe
    parents: Mapping[str, Path]
    policy: LoadedModel


@dataclass(frozen=True, slots=True)
class RewardPlan:
    """A reward as a recipe names it, parsed. listed: it was written as a list, whose names become parts."""

    components: tuple[Component | ModelComponent, ...]
    field: str
    listed: bool

    @property
    def stages(self) -> list[str]:
        """The stages whose reward models are asked, in order."""
        return [m for c in self._models for m in c.members if isinstance(m, str)]

    @property
    def files(self) -> list[Path]:
        """What it reads on this machine: the user's code, and directories of reward models from elsewhere."""
        code = [path for c in self.components if isinstance(c, Component) for path in c.files]
        paths = [Path(m.model).expanduser() for c in self._models for m in c.members if isinstance(m, PathScorer)]
        return [*code, *(path for path in paths if path.exists())]

    @property
    def _models(self) -> list[ModelComponent]:
        return [c for c in self.components if isinstance(c, ModelComponent)]

    def start(self) -> None:
        """Executes the user's code, to find what it could not say before. Raises UserError."""
        for one in self.components:
            if isinstance(one, Component):
                one.start()

    def build(self, place: Place) -> Reward:
        """The reward, with its children started and its models loaded. Raises UserError: a model of another tokenizer,
        or one that scores not one number."""
        self.start()
        only = self.components[0]
        if len(self.components) == 1 and not self.listed:
            if isinstance(only, ModelComponent) and only.plain:
                return model_reward(place, only)
            if isinstance(only, Component) and only.plain:
                return guard(only.reward)
        return combined([_part(place, one) for one in self.components], self.field)


def _part(place: Place, one: Component | ModelComponent) -> Part:
    if isinstance(one, Component):
        return one.part()
    return Part(guard(replace(model_reward(place, one), name=one.name)), one.weight)


# ---------------------------------------------------------------- from a recipe's words


def parse(recipe: Recipe, spec: Spec | None, field: str) -> RewardPlan:
    """spec: None takes the recipe's reward. Raises UserError for what is known to be wrong without a user's code."""
    given = spec if spec is not None else recipe.reward
    if given is None:
        raise UserError("no reward is given", field=field, hint="set it in the stage or at the top of the recipe")
    listed = [(given, field)] if is_model(given) else items(given, field)
    components = tuple(_component(recipe, one, place) for one, place in listed)
    names = [c.name for c in components]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise UserError(f"two rewards are called {twice!r}", field=field, hint="give one of them a `name`")
    plan = RewardPlan(components, field, listed=isinstance(given, list))
    _ = plan.files  # a file of the user's that is not there is an error now
    return plan


def _component(recipe: Recipe, spec: Any, field: str) -> Component | ModelComponent:
    if is_model(spec):
        return _model_component(spec, field)
    named = named_rewards()
    name = spec.get("kind") if isinstance(spec, dict) else spec
    if is_foreign(recipe.task) and isinstance(name, str) and name not in kinds() and name not in named:
        named[name] = OwnReward(recipe.task, name, field)
    return component(spec, field, named)


def is_model(spec: Any) -> bool:
    """Whether a spec names one or several reward models (and nothing else)."""
    return isinstance(spec, dict) and bool(SCORERS.keys() & spec.keys()) and "kind" not in spec


def _model_component(spec: dict[str, Any], field: str) -> ModelComponent:
    options = dict(spec)
    weight, name = weight_of(options, field), options.pop("name", None)
    key = next(key for key in SCORERS if key in options)
    scorer = config.validated(SCORERS[key], options, field)
    if isinstance(scorer, Ensemble) and len(set(scorer.ensemble)) < len(scorer.ensemble):
        raise UserError("has a member twice, which never disagrees with itself", field=f"{field}.ensemble")
    default = {"stage": options.get("stage"), "model": "reward_model", "ensemble": "ensemble"}[key]
    return ModelComponent(scorer, weight, str(name or default), field, weight == 1.0 and name is None)


def model_reward(place: Place, one: ModelComponent) -> ModelReward:
    """The reward models of a component, loaded and frozen."""
    if not isinstance(one.scorer, Ensemble):
        return ModelReward((member(place, one.members[0], one.field),))
    members = [member(place, m, f"{one.field}.ensemble[{i}]") for i, m in enumerate(one.members)]
    return ModelReward(tuple(_distinct(members)), one.scorer.aggregate, one.scorer.penalty)


def member(place: Place, what: str | PathScorer, field: str) -> Member:
    """One scorer, loaded and frozen. what: a stage's name, or a model from elsewhere."""
    source = str(place.parents[what] / "model") if isinstance(what, str) else what.model
    try:
        loaded = models.load(place.recipe, source, scalar="trained")
    except UserError as err:  # it speaks of a model, and a recipe has several
        raise UserError(err.message, file=err.file, field=field, hint=err.hint) from err
    if not models.same_tokens(loaded, place.policy):
        raise UserError(
            f"the reward model {source} has another tokenizer than the policy, whose token ids it would read as others",
            field=field,
            hint="take a reward model that was trained with the policy's tokenizer",
        )
    name = what if isinstance(what, str) else _name_of(source)
    filler = int(loaded.model.config.pad_token_id)  # pyright: ignore
    return Member(name, models.frozen(place.recipe, loaded, 1.0).forward, filler)


def _name_of(source: str) -> str:
    """A stage leaves its model in STAGE/model."""
    path = Path(source)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _distinct(members: Sequence[Member]) -> list[Member]:
    """Members of one name (the same stage of several runs) are numbered, so that each one's score is logged."""
    names = [m.name for m in members]
    return [replace(m, name=f"{m.name}_{i}") if names.count(m.name) > 1 else m for i, m in enumerate(members, 1)]
