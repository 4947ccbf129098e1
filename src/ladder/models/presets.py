"""Named models with random weights. They are stock transformers classes, so other tools load the trained models.

chain: the model of the built-in chain world, a Llama of 153 thousand parameters. (It is not a Qwen2, because
transformers replaces the tokenizer in a Qwen2 directory by that family's own, whatever the directory specifies.)
Matrices are drawn with standard deviation 1/sqrt(fan in), divided by sqrt(2 layers) for those that write to the
residual stream (GPT-2's rule); the head is drawn small so that training starts at the uniform distribution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ladder.base import rng
from ladder.base.errors import UserError

PRESETS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "chain": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 168,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
        },
    ),
    "small": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 344,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
    ),
}


def build(name: str, vocab_size: int, seed: int, implementation: str, changes: dict[str, Any]) -> nn.Module:
    """Builds a preset with new random weights from `seed`.

    implementation: transformers' name of the attention function. changes: configuration fields that replace those of
    the preset. Raises UserError for an unknown preset or field.
    """
    if name not in PRESETS:
        raise UserError(f"no preset is called {name!r}", field="model.source", hint=f"one of {', '.join(PRESETS)}")
    config_class, model_class, fields = PRESETS[name]
    unknown = set(changes) - set(config_class().to_dict())
    if unknown:
        raise UserError(f"{config_class.__name__} has no field {sorted(unknown)[0]!r}", field="model.config")
    config = config_class(vocab_size=vocab_size, **(fields | changes))
    config._attn_implementation = implementation
    with torch.random.fork_rng(devices=[]):
        model = model_class(config)
    _initialise(model, rng.generator(seed, "weights"), config.num_hidden_layers)
    return model


def _initialise(model: nn.Module, g: torch.Generator, layers: int) -> None:
    for name, p in model.named_parameters():
        if "embed" in name:
            nn.init.normal_(p, std=0.5 if p.shape[1] <= 64 else 0.02, generator=g)
        elif "lm_head" in name:
            nn.init.normal_(p, std=0.02, generator=g)
        elif p.ndim == 2:
            shrink = math.sqrt(2 * layers) if "o_proj" in name or "down_proj" in name else 1.0
            nn.init.normal_(p, std=1 / math.sqrt(p.shape[1]) / shrink, generator=g)
