"""Low-rank adapters through PEFT: only the adapter is trained, and the model with the adapter off is the reference.

LoRA: Hu et al. 2021, arXiv:2106.09685: W' = W + (alpha / rank) B A, with B = 0 at first. Attention matrices only by
default, as in the paper. Left out: dropout, because with it the ratio at step 0 is not 1.
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
    """A recipe's adapter. targets: "attention", "mlp", "all-linear", or names of linear layers."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    targets: str | tuple[str, ...] = "attention"


def attach(model: nn.Module, lora: LoRA, seed: int) -> PeftModel:
    """Wraps the model (in place) in a new adapter and freezes everything else.

    Raises UserError when the model has none of the target layers, or lacks one that was named.
    """
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
        # in the model's dtype: a bfloat16 adapter is trained like bfloat16 weights (`engine/optim.py`)
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)  # pyright: ignore[reportArgumentType]
    assert isinstance(wrapped, PeftModel)
    return wrapped


def attach_saved(model: Any, directory: Path) -> PeftModel:
    """Wraps the model (in place) in an adapter loaded from a directory in PEFT's layout, for inference only."""
    return PeftModel.from_pretrained(model, str(directory)).eval()


def _targets(model: nn.Module, targets: str | tuple[str, ...]) -> list[str]:
    """Names of the model's linear layers that `targets` selects. Raises UserError as `attach` does."""
    linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    linear -= {"lm_head", "score"}  # a score head is trained in full: PEFT's SEQ_CLS stores a copy in the adapter
    presets: dict[str, set[str]] = {"attention": set(ATTENTION), "mlp": set(MLP), "all-linear": linear}
    layer_names = {targets} if isinstance(targets, str) else set(targets)
    requested = presets[targets] if isinstance(targets, str) and targets in presets else layer_names
    selected = sorted(requested & linear)
    if not selected or (not isinstance(targets, str) and len(selected) < len(requested)):
        missing = sorted(requested - linear)
        raise UserError(
            f"the model has no linear layer called {', '.join(missing)} (it has: {', '.join(sorted(linear))})",
            field="model.lora.targets",
            hint="attention, mlp, all-linear, or a list of these layers",
        )
    return selected


@contextmanager
def adapter_off(wrapped: PeftModel) -> Iterator[None]:
    """A context in which the model is the reference: the weights it had before training, without the adapter.

    Raises UserError when a parameter outside the adapter is trained.
    """
    outside = [n for n, p in wrapped.named_parameters() if p.requires_grad and "lora_" not in n]
    if outside:
        raise UserError(
            f"{outside[0]} is trained outside the adapter, so the model with the adapter off is not the reference"
        )
    with wrapped.disable_adapter():
        yield


def merge(wrapped: PeftModel) -> Any:
    """Merges the adapter into the weights and returns the plain model, whose logits are equal within rounding.

    Models in bfloat16 and float16 are converted to float32 first, because rounding to 16 bits would lose most of an
    adapter after little training.
    """
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in wrapped.parameters()):
        wrapped.float()
    merged: Any = wrapped.merge_and_unload()
    for p in merged.parameters():
        p.requires_grad_(True)
    return merged


def save_adapter(wrapped: PeftModel, directory: Path) -> None:
    """Writes the adapter without the base model, in PEFT's layout."""
    # the default "auto" would query the hub whether the base model's vocabulary grew; only the adapter is trained here
    wrapped.save_pretrained(str(directory), save_embedding_layers=False)


def save_merged(loaded: LoadedModel, directory: Path) -> None:
    """Writes the model with its adapter merged, as a plain directory. The model in memory is not changed."""
    assert isinstance(loaded.model, PeftModel)
    save_model(replace(loaded, model=merge(copy.deepcopy(loaded.model))), directory)
