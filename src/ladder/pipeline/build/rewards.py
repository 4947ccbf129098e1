"""Reward models as a reward, the proxy that reinforcement learning climbs: one, several as one, or beside others.

    reward: {stage: reward_model}                    the reward model of an earlier stage
    reward: {model: path-or-hub-id}                  one that was trained elsewhere, with the policy's tokenizer
    reward: {ensemble: [rm_a, rm_b, {model: ...}]}   several: their mean; aggregate: min, or uncertainty
    reward: [{stage: reward_model}, {kind: format, weight: 0.2}]

An ensemble is harder to fool than its members: where they were never trained they disagree (Coste et al. 2023,
arXiv:2310.02743, "worst-case" and "uncertainty-weighted" optimisation): the minimum, or mean - penalty * variance.

Scores whole rollouts, token for token, with the scalar head at their end; so it must read the policy's token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import Field

from ladder.base import config
from ladder.base.config import Config
from ladder.base.errors import UserError
from ladder.contract.rollouts import Reward
from ladder.models.load import LoadedModel
from ladder.pipeline.build import models, rewards
from ladder.pipeline.recipe import Recipe, Spec
from ladder.pipeline.stage import Context
from ladder.rewards import build as build_reward_of_kind
from ladder.rewards.combine import Combine, Part
from ladder.rewards.guarded import guard
from ladder.rewards.recipe import part_of
from ladder.signals.model_reward import Aggregate, Member, ModelReward
from ladder.tasks.chain import answers
from ladder.tasks.chain.gold import gold


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


# ---------------------------------------------------------------- from a recipe's words


def is_model(spec: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a spec names one or several reward models (and nothing else)."""
    return isinstance(spec, dict) and bool({"stage", "model", "ensemble"} & set(spec)) and "kind" not in spec


def has_model(spec: Spec | None) -> bool:
    """Whether a reward model is asked for, alone or beside other rewards."""
    return is_model(spec) or (isinstance(spec, list) and any(map(is_model, spec)))


def _named(spec: Spec | None) -> list[Any]:
    """Every reward model that a spec names, as it is written there; what cannot be read is left to `check`."""
    if isinstance(spec, list):
        return [m for one in spec for m in _named(one)]
    members = spec.get("ensemble", [spec]) if is_model(spec) else []
    return members if isinstance(members, list) else []


def stages_of(spec: Spec | None) -> list[str]:
    """The stages whose reward models a spec names, in order."""
    found = [m.get("stage") if isinstance(m, dict) else m for m in _named(spec)]
    return [name for name in found if isinstance(name, str)]


def files(spec: Spec | None) -> list[Path]:
    """The directories of reward models from elsewhere that lie on this machine."""
    found = [m.get("model") for m in _named(spec) if isinstance(m, dict)]
    paths = [Path(source).expanduser() for source in found if isinstance(source, str)]
    return [path for path in paths if path.exists()]


def check(recipe: Recipe, spec: Spec | None, field: str) -> None:
    """Raises UserError for what can be known to be wrong with a stage's reward before anything runs."""
    if not has_model(spec):
        rewards.reward_of(recipe, spec, field)
        return
    for i, one in enumerate(spec if isinstance(spec, list) else [spec]):
        place = f"{field}[{i}]" if isinstance(spec, list) else field
        if is_model(one):
            _parsed(_without_weight(one, place)[0], place)
        else:
            part_of(one, place)


def build(ctx: Context, policy: LoadedModel, spec: Spec | None, field: str) -> Reward:
    """A stage's reward with its models loaded. Raises UserError: a model of another tokenizer, or one that scores not
    one number."""
    if not has_model(spec):
        return rewards.reward_of(ctx.recipe, spec, field)
    if isinstance(spec, list):
        made = []
        for i, one in enumerate(spec):
            place = f"{field}[{i}]"
            if not is_model(one):
                made.append(part_of(one, place))
                continue
            own, weight, name = _without_weight(one, place)
            made.append(Part(guard(replace(_model(ctx, policy, own, place), name=name)), weight))
        names = [p.reward.name for p in made]
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            raise UserError(f"two rewards are called {twice!r}", field=field, hint="give one of them a `name`")
        return guard(Combine(tuple(made)))
    return _model(ctx, policy, spec, field)


def _without_weight(spec: dict[str, Any], field: str) -> tuple[dict[str, Any], float, str]:
    """A list's item apart from what says how it counts: (model, weight, name)."""
    own = {k: v for k, v in spec.items() if k not in ("weight", "name")}
    weight = spec.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UserError(f"not a number: {weight!r}", field=f"{field}.weight")
    stage = spec.get("stage", "ensemble" if "ensemble" in spec else "reward_model")
    return own, float(weight), str(spec.get("name") or stage)


def _parsed(spec: Any, field: str) -> StageScorer | PathScorer | Ensemble:
    cls = StageScorer if "stage" in spec else PathScorer if "model" in spec else Ensemble
    parsed = config.validated(cls, spec, field)
    if isinstance(parsed, Ensemble) and len(set(parsed.ensemble)) < len(parsed.ensemble):
        raise UserError("has a member twice, which never disagrees with itself", field=f"{field}.ensemble")
    return parsed


def _model(ctx: Context, policy: LoadedModel, spec: Any, field: str) -> ModelReward:
    match _parsed(spec, field):
        case StageScorer(stage=stage):
            return ModelReward((member(ctx, policy, stage, field),))
        case PathScorer() as one:
            return ModelReward((member(ctx, policy, one, field),))
        case Ensemble() as several:
            members = [member(ctx, policy, m, f"{field}.ensemble[{i}]") for i, m in enumerate(several.ensemble)]
            return ModelReward(tuple(_distinct(members)), several.aggregate, several.penalty)


def member(ctx: Context, policy: LoadedModel, what: str | PathScorer, field: str) -> Member:
    """One scorer, loaded and frozen. what: a stage's name, or a model from elsewhere."""
    source = str(ctx.parents[what] / "model") if isinstance(what, str) else what.model
    try:
        loaded = models.load(ctx.recipe, source, scalar="trained")
    except UserError as err:  # it speaks of a model, and a recipe has several
        raise UserError(err.message, file=err.file, field=field, hint=err.hint) from err
    if not models.same_tokens(loaded, policy):
        raise UserError(
            f"the reward model {source} has another tokenizer than the policy, whose token ids it would read as others",
            field=field,
            hint="take a reward model that was trained with the policy's tokenizer",
        )
    name = what if isinstance(what, str) else _name_of(source)
    return Member(name, models.frozen(ctx.recipe, loaded, 1.0).forward, int(loaded.model.config.pad_token_id))  # pyright: ignore


def _name_of(source: str) -> str:
    """A stage leaves its model in STAGE/model."""
    path = Path(source)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _distinct(members: Sequence[Member]) -> list[Member]:
    """Members of one name (the same stage of several runs) are numbered, so that each one's score is logged."""
    names = [m.name for m in members]
    return [replace(m, name=f"{m.name}_{i}") if names.count(m.name) > 1 else m for i, m in enumerate(members, 1)]



CHAIN_REWARDS: dict[str, Reward] = {"chain": answers.correct, "chain_gold": gold}


def reward_of(recipe: Recipe, own: Spec | None, field: str) -> Reward:
    """A stage's or a set's own reward; the recipe's where it has none. Raises UserError."""
    return reward(own if own is not None else recipe.reward, field)


def reward(spec: Spec | None, field: str) -> Reward:
    """A recipe's reward. `chain` is the built-in world's: 1 for a right final answer; `chain_gold` its gold."""
    if spec is None:
        raise UserError("no reward is given", field=field, hint="set it in the stage or at the top of the recipe")
    if isinstance(spec, str) and spec in CHAIN_REWARDS:
        return CHAIN_REWARDS[spec]
    return build_reward_of_kind(spec, field)
