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
    """The tokenizer that the task's world brings along. Raises UserError where it brings none."""
    own = world(recipe.task)
    if own is None or own.tokenizer is None or own.special is None:
        raise UserError("a preset has no tokenizer, and this task brings none", field="model.source")
    special = own.special
    return wrap_tokenizer(own.tokenizer(), bos=special.bos, eos=special.eos, pad=special.pad)


def same_tokens(a: LoadedModel, b: LoadedModel) -> bool:
    """Whether two models read the same token ids as the same text."""
    return dict(a.tokenizer.get_vocab()) == dict(b.tokenizer.get_vocab())


def _workers(recipe: Recipe, asked: int) -> int:
    """Threads are for a processor's cores."""
    return asked if recipe.model.device == "cpu" else 1


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
