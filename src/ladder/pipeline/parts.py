"""Parts made from a recipe's words: the model, the sampler, tasks, rewards, losses."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

import ladder.losses
from ladder import tasks as task_sources
from ladder.chat import encode_prompt
from ladder.config import near
from ladder.engine.model import LoadedModel, load_model, wrap_tokenizer
from ladder.errors import UserError
from ladder.pipeline.recipe import Recipe, SamplingSpec, Spec
from ladder.pipeline.stage import Context, StageConfig
from ladder.rewards import build as build_reward_of_kind
from ladder.rollout.native import NativeSampler
from ladder.tasks import TaskSource
from ladder.tasks.chain import answers, words
from ladder.types import Loss, Reward, Rollout, Sampling

Stats = Callable[[Sequence[Rollout]], dict[str, float]]


def model(ctx: Context, config: StageConfig) -> LoadedModel:
    """The model a stage starts from."""
    return load(ctx, ctx.model_source(config))


def load(ctx: Context, source: str) -> LoadedModel:
    """Any model, with the recipe's options."""
    spec = ctx.recipe.model
    preset = source.startswith("preset:")
    return load_model(
        source,
        tokenizer=tokenizer_of(ctx.recipe) if preset else None,
        config=spec.config if preset else None,
        seed=ctx.seed,
        dtype=spec.dtype,
        device=spec.device,
        revision=spec.revision if source == spec.source else None,
        trust_remote_code=spec.trust_remote_code,
    )


def tokenizer_of(recipe: Recipe) -> Any:
    """The tokenizer a task brings along; only the built-in world does."""
    if not is_chain(recipe.task):
        raise UserError("a preset has no tokenizer, and this task brings none", field="model.source")
    return wrap_tokenizer(words.tokenizer(), bos="<s>", eos="</s>", pad="<pad>")


def sampler(ctx: Context, loaded: LoadedModel) -> NativeSampler:
    spec = ctx.recipe.sampler
    return NativeSampler(
        loaded.model,
        loaded.tokenizer,
        eos=loaded.eos,
        slots=spec.slots,
        cache_tokens=spec.cache_tokens,
        workers=spec.workers,
    )


def encoder(ctx: Context, loaded: LoadedModel) -> Callable[[Any], list[int]]:
    """How prompts become token ids."""

    def encode(prompt: Any) -> list[int]:
        return encode_prompt(loaded.tokenizer, prompt, as_turn=ctx.recipe.as_turn and isinstance(prompt, str))

    return encode


def sampling(spec: SamplingSpec, **changes: Any) -> Sampling:
    return Sampling(**(spec.model_dump() | changes))


def is_chain(spec: Spec | None) -> bool:
    return spec == "chain" or (isinstance(spec, dict) and ("chain" in spec or spec.get("kind") == "chain"))


def tasks(spec: Spec | None, field: str) -> TaskSource:
    if spec is None:
        raise UserError("no task is given", field=field, mend="set it in the stage or at the top of the recipe")
    if isinstance(spec, list):
        raise UserError("is a list; one task source is wanted", field=field)
    return task_sources.build(spec, field)


def reward(spec: Spec | None, field: str) -> Reward:
    """A recipe's reward. `chain` is the built-in world's: 1 for a right final answer."""
    if spec is None:
        raise UserError("no reward is given", field=field, mend="set it in the stage or at the top of the recipe")
    if spec == "chain":
        return answers.correct
    return build_reward_of_kind(spec, field)


def stats(spec: Spec | None) -> Stats | None:
    """Figures a world knows of its answers."""
    return answers.stats if is_chain(spec) else None


FILTERS: dict[str, Callable[[Rollout], bool]] = {
    "clean": lambda r: answers.is_clean(r.text),
    "finished": lambda r: r.stop != "length",
}


def loss(spec: Spec, field: str) -> Loss:
    """A loss by its class's name in `ladder.losses`, or by import path, with its fields."""
    options = {"kind": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, dict) else {}
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError("a loss is named by its kind", field=field, mend="write {kind: PolicyClip, clip_high: 0.28}")
    cls = _loss_class(kind, field)
    known = [f.name for f in fields(cls)]
    for name in options:
        if name not in known:
            raise UserError(f"{kind} has no field {name!r}{near(name, known)}", field=f"{field}.{name}")
    try:
        return TypeAdapter(cls).validate_python(options)
    except ValidationError as err:
        first = err.errors()[0]
        raise UserError(first["msg"], field=".".join([field, *map(str, first["loc"])])) from err


def _loss_class(kind: str, field: str) -> type:
    if ":" in kind:
        module, _, name = kind.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as err:
            raise UserError(f"cannot import {kind!r}: {err}", field=field) from err
    known = ladder.losses.__all__
    if kind not in known:
        raise UserError(f"no loss is called {kind!r}{near(kind, known)}", field=field)
    return getattr(ladder.losses, kind)


def split_reward(spec: Spec | None, fallback: Spec | None, field: str) -> Reward:
    return reward(spec if spec is not None else fallback, field)


