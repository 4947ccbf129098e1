"""Models and engines built from a recipe: the policy, frozen references, adapters."""

from __future__ import annotations

from typing import Any

from ladder.base.errors import UserError
from ladder.contract.training import Reference
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.models.load import LoadedModel, Scalar, load_model, wrap_tokenizer
from ladder.models.lora import LoRA, PeftModel, adapter_off, attach
from ladder.pipeline.build.tasks import world
from ladder.pipeline.recipe import Recipe


def load(recipe: Recipe, source: str, *, scalar: Scalar = False) -> LoadedModel:
    """Loads a model with the recipe's options. source: a directory, hub id, GGUF file or `preset:NAME`. scalar: with a
    scalar head, see `models.load.load_model`."""
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
    """The tokenizer of the task's world, for a preset model. Raises UserError if the world has none."""
    task_world = world(recipe.task)
    if task_world is None or task_world.tokenizer is None or task_world.special is None:
        raise UserError("a preset has no tokenizer, and this task brings none", field="model.source")
    special = task_world.special
    return wrap_tokenizer(task_world.tokenizer(), bos=special.bos, eos=special.eos, pad=special.pad)


def same_tokens(a: LoadedModel, b: LoadedModel) -> bool:
    """Whether two models have the same vocabulary (token ids stand for the same text)."""
    return dict(a.tokenizer.get_vocab()) == dict(b.tokenizer.get_vocab())


def cpu_workers(recipe: Recipe, workers: int) -> int:
    """The number of worker threads: as set on a CPU, 1 on any other device, where threads gain nothing."""
    return workers if recipe.model.device == "cpu" else 1


def frozen(recipe: Recipe, loaded: LoadedModel, temperature: float) -> Engine:
    """An engine without an optimiser: it only computes the frozen model's columns (log-probabilities, values)."""
    loaded.model.requires_grad_(False)
    return Engine(loaded.model, None, budget=recipe.engine.budget, temperature=temperature)


def reference(engine: Engine) -> Reference:
    """The reference of the policy in `engine`: a frozen copy of its current weights, or the model with its adapter
    switched off."""
    if engine.without is not None:
        return lambda units: engine.forward(units, reference=True)
    return engine.freeze().forward


def engine(
    recipe: Recipe, loaded: LoadedModel, lora: LoRA | None, optim: Optim, total: int, temperature: float = 1.0
) -> Engine:
    """An engine that trains all weights of a loaded model, or with `lora` an adapter that is attached to it. total:
    optimiser steps in all, for the learning-rate schedule. temperature: of the sampled rollouts."""
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
        workers=cpu_workers(recipe, spec.workers),
        without=(lambda: adapter_off(model)) if isinstance(model, PeftModel) else None,
    )
