"""Parts made from a recipe's words: the model, the sampler, tasks, rewards, losses."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

import ladder.losses
from ladder import tasks as task_sources
from ladder.chat import encode_prompt
from ladder.config import UNKNOWN, Config, near
from ladder.engine.engine import Engine
from ladder.engine.lora import LoRA, PeftModel, adapter_off, attach
from ladder.engine.model import DTYPES, LoadedModel, Scalar, load_model, save_model, wrap_tokenizer
from ladder.engine.optim import Optim
from ladder.errors import UserError
from ladder.pipeline.recipe import Recipe, SamplingSpec, Spec
from ladder.rewards import build as build_reward_of_kind
from ladder.rollout.native import NativeSampler
from ladder.rollout.vllm import VLLMSampler
from ladder.signals.rewards import Reference
from ladder.tasks import TaskSource
from ladder.tasks.chain import answers, words
from ladder.tasks.chain.gold import gold
from ladder.tasks.chain.source import Chain
from ladder.tasks.split import known
from ladder.types import Loss, Reward, Rollout, Sample, Sampling, Task

CHAIN_REWARDS: dict[str, Reward] = {"chain": answers.correct, "chain_gold": gold}

Stats = Callable[[Sequence[Rollout]], dict[str, float]]


def load(recipe: Recipe, source: str, *, scalar: Scalar = False) -> LoadedModel:
    """Any model, with the recipe's options. scalar: with a head of one number, see `engine.model.load_model`."""
    spec = recipe.model
    preset = source.startswith("preset:")
    return load_model(
        source,
        tokenizer=tokenizer_of(recipe) if preset else None,
        config=spec.config if preset else None,
        seed=recipe.seed,
        dtype=spec.dtype,
        device=spec.device,
        revision=spec.revision if source == spec.source else None,
        trust_remote_code=spec.trust_remote_code,
        scalar=scalar,
    )


def tokenizer_of(recipe: Recipe) -> Any:
    """The tokenizer a task brings along; only the built-in world does."""
    if not is_chain(recipe.task):
        raise UserError("a preset has no tokenizer, and this task brings none", field="model.source")
    return wrap_tokenizer(words.tokenizer(), bos="<s>", eos="</s>", pad="<pad>")


def same_tokens(a: LoadedModel, b: LoadedModel) -> bool:
    """Whether two models read the same token ids as the same text."""
    return dict(a.tokenizer.get_vocab()) == dict(b.tokenizer.get_vocab())


def drawer(recipe: Recipe, loaded: LoadedModel) -> NativeSampler | VLLMSampler:
    """Who draws what is trained on. Raises UserError for an adapter with vLLM."""
    spec = recipe.sampler
    if spec.kind == "native":
        return sampler(recipe, loaded)
    if isinstance(loaded.model, PeftModel):
        raise UserError("vLLM is handed whole models only", field="sampler.kind", mend="leave out the adapter")

    def score(tokens: list[int]) -> Tensor:
        mask = torch.arange(len(tokens)) > 0
        engine = Engine(loaded.model, None, budget=recipe.engine.budget)
        return engine.forward([Sample(torch.tensor(tokens), mask, {}, {})])[0]["logps"]

    config: Any = loaded.model.config
    return VLLMSampler(
        lambda directory: save_model(loaded, directory),
        loaded.tokenizer,
        eos=loaded.eos,
        score=score,
        context=config.max_position_embeddings,
        slots=spec.slots,
        cache_gb=spec.cache_gb,
        block=spec.block,
        compiled=spec.compiled,
        dtype=recipe.model.dtype,
        tolerance=spec.tolerance,
    )


def sampler(recipe: Recipe, loaded: LoadedModel) -> NativeSampler:
    """The native one, which needs no start and draws with the very modules."""
    spec = recipe.sampler
    return NativeSampler(
        loaded.model,
        loaded.tokenizer,
        eos=loaded.eos,
        slots=spec.slots,
        cache_tokens=spec.cache_tokens,
        workers=_workers(recipe, spec.workers),
        dtype=DTYPES[spec.dtype],
    )


def _workers(recipe: Recipe, asked: int) -> int:
    """Threads are for a processor's cores."""
    return asked if recipe.model.device == "cpu" else 1


def encoder(recipe: Recipe, loaded: LoadedModel) -> Callable[[Any], list[int]]:
    """How prompts become token ids."""

    def encode(prompt: Any) -> list[int]:
        return encode_prompt(loaded.tokenizer, prompt, as_turn=recipe.as_turn and isinstance(prompt, str))

    return encode


def sampling(spec: SamplingSpec, **changes: Any) -> Sampling:
    return Sampling(**(spec.model_dump() | changes))


def is_chain(spec: Spec | None) -> bool:
    return spec == "chain" or (isinstance(spec, dict) and ("chain" in spec or spec.get("kind") == "chain"))


def tasks_of(spec: Spec | None, split: str, field: str) -> TaskSource:
    """Where a stage's or a set's tasks come from. field: of the two together. Raises UserError."""
    source = tasks(spec, f"{field}.task")
    known(split, source.splits, f"{field}.split")
    return source


def tasks(spec: Spec | None, field: str) -> TaskSource:
    if spec is None:
        raise UserError("no task is given", field=field, mend="set it in the stage or at the top of the recipe")
    if isinstance(spec, list):
        raise UserError("is a list; one task source is wanted", field=field)
    return task_sources.build(spec, field)


def reward_of(recipe: Recipe, own: Spec | None, field: str) -> Reward:
    """A stage's or a set's own reward; the recipe's where it has none. Raises UserError."""
    return reward(own if own is not None else recipe.reward, field)


def reward(spec: Spec | None, field: str) -> Reward:
    """A recipe's reward. `chain` is the built-in world's: 1 for a right final answer; `chain_gold` its gold."""
    if spec is None:
        raise UserError("no reward is given", field=field, mend="set it in the stage or at the top of the recipe")
    if isinstance(spec, str) and spec in CHAIN_REWARDS:
        return CHAIN_REWARDS[spec]
    return build_reward_of_kind(spec, field)


def stats(spec: Spec | None) -> Stats | None:
    """Figures a world knows of its answers."""
    return answers.stats if is_chain(spec) else None


def text_stats(spec: Spec | None, texts: Sequence[str]) -> dict[str, float]:
    """The same of bare texts; nothing where the world knows none."""
    return answers.text_stats(texts) if is_chain(spec) else {}


def belongs(task: Task, spec: Spec) -> bool:
    """Whether a task is such as an evaluation set holds: in the built-in world, of as many steps."""
    if not is_chain(spec):
        return True
    source = tasks(spec, "eval.sets")
    assert isinstance(source, Chain)
    return source.steps[0] <= task.meta.get("steps", -1) <= source.steps[1]


def files(spec: Any) -> list[Path]:
    """The files that a task source or a reward reads: data, and `file.py` of a function `file.py:name`."""
    if isinstance(spec, dict | list):
        values = spec.values() if isinstance(spec, dict) else spec
        return [path for value in values for path in files(value)]
    if not isinstance(spec, str):
        return []
    path = spec.rpartition(":")[0] if ".py:" in spec else spec
    return [Path(path)] if path.endswith((".jsonl", ".py")) else []


FILTERS: dict[str, Callable[[Rollout], bool]] = {
    "clean": lambda r: answers.is_clean(r.text),
    "finished": lambda r: r.stop != "length",
    "offhand": lambda r: not answers.is_worked(r.text),
}


def filters(names: Sequence[str], field: str) -> dict[str, Callable[[Rollout], bool]]:
    for name in names:
        if name not in FILTERS:
            raise UserError(f"no filter is called {name!r}{near(name, list(FILTERS))}", field=field)
    return {name: FILTERS[name] for name in names}


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
    return validated(cls, options, field)


def validated(cls: Any, options: Any, field: str) -> Any:
    """`cls` made of plain data. Raises UserError at the field that is wrong."""
    try:
        return TypeAdapter(cls).validate_python(options)
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join([field, *map(str, first["loc"])])
        if first["type"] in UNKNOWN:
            whole = isinstance(cls, type) and issubclass(cls, Config)
            known = [*cls.model_fields] if whole else [f.name for f in fields(cls)]
            raise UserError(f"unknown key{near(str(first['loc'][-1]), known)}", field=place) from err
        raise UserError(first["msg"].removeprefix("Value error, "), field=place) from err


def _loss_class(kind: str, field: str) -> Any:
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


def frozen(recipe: Recipe, loaded: LoadedModel, temperature: float) -> Engine:
    """An engine that only answers what a model's log-probabilities are."""
    loaded.model.requires_grad_(False)
    return Engine(loaded.model, None, budget=recipe.engine.budget, temperature=temperature)


def reference(engine: Engine) -> Reference:
    """The engine's model as it is now: a frozen copy, or the adapter switched off."""
    if engine.without is not None:
        return lambda units: engine.forward(units, reference=True)
    return engine.freeze().forward


def engine(
    recipe: Recipe, loaded: LoadedModel, lora: LoRA | None, optim: Optim, total: int, temperature: float = 1.0
) -> Engine:
    """An engine that trains a loaded model, or an adapter that is put into it."""
    spec = recipe.engine
    if lora is not None:
        loaded.model = attach(loaded.model, lora, recipe.seed)
    model = loaded.model
    return Engine(
        model,
        optim,
        budget=spec.budget,
        share_prefix=spec.share_prefix,
        temperature=temperature,
        checkpointing=spec.checkpointing,
        total_steps=total,
        workers=_workers(recipe, spec.workers),
        without=(lambda: adapter_off(model)) if isinstance(model, PeftModel) else None,
    )


