"""Which models have the Llama layout: Llama, Qwen 2, Qwen 3 and Mistral, as transformers builds them.

    x = x + O attend(rope(Q h), rope(K h), V h),  h = norm(x)
    x = x + D (silu(G h) * U h),                  h = norm(x)

Sampling (`rollout/llama.py`) and training (`engine/fused.py`) compute it with fewer operators than the modules. Not of
this layout: windows shorter than the context, rotations that depend on the length, other activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import LlamaModel, MistralModel, Qwen2Model, Qwen3Model

FAMILIES = (LlamaModel, Qwen2Model, Qwen3Model, MistralModel)
ROTATIONS = ("default", "linear", "llama3", "yarn")


def known(base: nn.Module, context: int) -> bool:
    """Whether the decoder of a model is of this layout for sequences of at most `context` tokens."""
    if type(base) not in FAMILIES:
        return False
    config: Any = base.config
    values = config.to_dict()
    window = values.get("sliding_window") or context
    slides = isinstance(base, MistralModel) or "sliding_attention" in values.get("layer_types", ())
    plain = values["hidden_act"] == "silu" and values["rope_parameters"]["rope_type"] in ROTATIONS
    return plain and not (slides and window < context)


# ------------------------------------------------------------ what both know of PEFT's LoRA layers


def plain(layer: Any) -> bool:
    """Whether its adapters are as their paper has them, dropout aside: of no other kind, no biases, not merged."""
    biased = any(b.bias is not None for b in layer.lora_B.values())
    return not (biased or layer.lora_variant or layer.fan_in_fan_out or layer.merged)


def adapters(layer: Any) -> Iterator[tuple[Tensor, Tensor, float]]:
    """A [rank, D], B [N, rank] and the scale of each that is switched on."""
    if not layer.disable_adapters:
        for name in layer.active_adapters:
            if name in layer.lora_A:
                yield layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
