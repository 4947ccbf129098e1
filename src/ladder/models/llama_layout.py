"""Which models have the Llama layout: Llama, Qwen 2, Qwen 3 and Mistral, as transformers builds them.

    x = x + O attend(rope(Q h), rope(K h), V h),  h = norm(x)
    x = x + D (silu(G h) * U h),                  h = norm(x)

Sampling (`decoding/llama.py`) and training (`fused_llama.py`) compute these equations with fewer operators than
transformers' modules. Not of this layout: sliding windows shorter than the context, rotary embeddings that depend on
the sequence length, activations other than SiLU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import LlamaModel, MistralModel, Qwen2Model, Qwen3Model

FAMILIES = (LlamaModel, Qwen2Model, Qwen3Model, MistralModel)
ROTATIONS = ("default", "linear", "llama3", "yarn")


def known(base: nn.Module, context: int) -> bool:
    """Whether the decoder `base` has this layout for sequences of at most `context` tokens."""
    if type(base) not in FAMILIES:
        return False
    config: Any = base.config
    values = config.to_dict()
    window = values.get("sliding_window") or context
    has_window = isinstance(base, MistralModel) or "sliding_attention" in values.get("layer_types", ())
    same_operators = values["hidden_act"] == "silu" and values["rope_parameters"]["rope_type"] in ROTATIONS
    return same_operators and not (has_window and window < context)


# ------------------------------------------------------------ PEFT's LoRA layers, for sampling and training


def plain(layer: Any) -> bool:
    """Whether its adapters are those of the LoRA paper: no variant, no biases, not merged. Dropout is not checked."""
    has_bias = any(b.bias is not None for b in layer.lora_B.values())
    return not (has_bias or layer.lora_variant or layer.fan_in_fan_out or layer.merged)


def adapters(layer: Any) -> Iterator[tuple[Tensor, Tensor, float]]:
    """(A [rank, D], B [N, rank], scale) of each active adapter."""
    if not layer.disable_adapters:
        for name in layer.active_adapters:
            if name in layer.lora_A:
                yield layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
