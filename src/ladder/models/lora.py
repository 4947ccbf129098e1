"""Low-rank adapters through PEFT: trained instead of the weights, and switched off they are the reference.

LoRA: Hu et al. 2021, arXiv:2106.09685: W' = W + (alpha / rank) B A, with B = 0 at first. Attention matrices only by
default, as in the paper; dropout is left out, because with it the ratio at step 0 is not 1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from ladder.base.config import Config
from ladder.base.errors import UserError
from ladder.models.load import LoadedModel, save_model

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn")
MLP = ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_fc")


class LoRA(Config):
    """targets: "attention", "mlp", "all-linear", or names of modules."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    targets: str | tuple[str, ...] = "attention"


def attach(model: nn.Module, lora: LoRA, seed: int) -> PeftModel:
    """Puts an adapter into the model (in place) and freezes everything else. Raises UserError when nothing matches."""
    names = _targets(model, lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=names,
        lora_dropout=0.0,
        task_type="CAUSAL_LM" if model.get_output_embeddings() is not None else "SEQ_CLS",  # pyright: ignore
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # in the type of the model: an adapter in halves is trained like weights in halves (`optim.py`)
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)  # pyright: ignore[reportArgumentType]
    assert isinstance(wrapped, PeftModel)
    return wrapped


def attach_saved(model: Any, directory: Path) -> PeftModel:
    """Puts an adapter from a directory in PEFT's layout into the model (in place), to be used and not trained."""
    return PeftModel.from_pretrained(model, str(directory)).eval()


def _targets(model: nn.Module, targets: str | tuple[str, ...]) -> list[str]:
    linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    linear -= {"lm_head", "score"}  # a score is trained as a whole: PEFT's SEQ_CLS keeps a copy of it in the adapter
    named: dict[str, set[str]] = {"attention": set(ATTENTION), "mlp": set(MLP), "all-linear": linear}
    listed = {targets} if isinstance(targets, str) else set(targets)
    wanted = named[targets] if isinstance(targets, str) and targets in named else listed
    found = sorted(wanted & linear)
    if not found or (not isinstance(targets, str) and len(found) < len(wanted)):
        missing = sorted(wanted - linear)
        raise UserError(
            f"the model has no linear layer called {', '.join(missing)} (it has: {', '.join(sorted(linear))})",
            field="model.lora.targets",
            hint="attention, mlp, all-linear, or a list of these layers",
        )
    return found


@contextmanager
def adapter_off(wrapped: PeftModel) -> Iterator[None]:
    """The model as it was before: the reference. Raises UserError when something outside the adapter is trained."""
    outside = [n for n, p in wrapped.named_parameters() if p.requires_grad and "lora_" not in n]
    if outside:
        raise UserError(f"{outside[0]} is trained outside the adapter, so switching it off is no reference")
    with wrapped.disable_adapter():
        yield


def merge(wrapped: PeftModel) -> Any:
    """The adapter folded into the weights: a plain model with equal logits within rounding. In float32: halves would
    round most of a young adapter away."""
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in wrapped.parameters()):
        wrapped.float()
    merged: Any = wrapped.merge_and_unload()
    for p in merged.parameters():
        p.requires_grad_(True)
    return merged


def save_adapter(wrapped: PeftModel, directory: Path) -> None:
    """The adapter alone, in PEFT's layout."""
    # "auto" would ask the hub whether the base model's vocabulary grew; only the adapter is trained here
    wrapped.save_pretrained(str(directory), save_embedding_layers=False)


def save_merged(loaded: LoadedModel, directory: Path) -> None:
    """The model with its adapter folded in, as a plain directory. What is in memory stays as it is."""
    assert isinstance(loaded.model, PeftModel)
    save_model(replace(loaded, model=merge(copy.deepcopy(loaded.model))), directory)
