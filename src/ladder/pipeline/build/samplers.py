"""Samplers built from a recipe: the native one and vLLM, the encoder of prompts, the sampling settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ladder.base.errors import UserError
from ladder.contract.rollouts import Sampling
from ladder.contract.training import Sample
from ladder.data.chat import encode_prompt
from ladder.decoding.sampler import NativeSampler
from ladder.engine.engine import Engine
from ladder.models.load import DTYPES, LoadedModel, save_model
from ladder.models.lora import PeftModel
from ladder.pipeline.build.models import cpu_workers
from ladder.pipeline.recipe import NativeSpec, Recipe, SamplingSpec
from ladder.rollout.vllm import VLLMSampler


def rollout_sampler(recipe: Recipe, loaded: LoadedModel) -> NativeSampler | VLLMSampler:
    """The recipe's sampler, for rollouts that are trained on. Raises UserError for an adapter with vLLM."""
    spec = recipe.sampler
    if isinstance(spec, NativeSpec):
        return native_sampler(recipe, loaded)
    if isinstance(loaded.model, PeftModel):
        raise UserError("vLLM takes whole models, not adapters", field="sampler.kind", hint="leave out the adapter")

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


def native_sampler(recipe: Recipe, loaded: LoadedModel) -> NativeSampler:
    """The native sampler, whatever the recipe's is: it starts at once and samples with the modules that are trained."""
    spec = recipe.sampler if isinstance(recipe.sampler, NativeSpec) else NativeSpec(slots=recipe.sampler.slots)
    return NativeSampler(
        loaded.model,
        loaded.tokenizer,
        eos=loaded.eos,
        slots=spec.slots,
        cache_tokens=spec.cache_tokens,
        workers=cpu_workers(recipe, spec.workers),
        dtype=DTYPES[spec.dtype],
    )


def encoder(recipe: Recipe, loaded: LoadedModel) -> Callable[[Any], list[int]]:
    """The function that encodes a prompt (text or messages) as token ids, with the recipe's chat template."""

    def encode(prompt: Any) -> list[int]:
        return encode_prompt(loaded.tokenizer, prompt, chat_template=recipe.chat_template and isinstance(prompt, str))

    return encode


def sampling(spec: SamplingSpec, **changes: Any) -> Sampling:
    """The contract's sampling settings from a recipe's, with some of them changed."""
    return Sampling(**(spec.model_dump() | changes))
