"""The least that decoding has to read: for every step the weights once, and the keys and values of all rows that live.

A prompt that several answers share counts once a step. Reading the prompts themselves and writing are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def read(model: nn.Module, prompts: Sequence[int], answers: Sequence[Sequence[int]]) -> dict[str, float]:
    """{"bytes", "decoding_steps"} of one call. prompts: their lengths; answers: the lengths drawn to each of them.

    An answer's first token comes from its prompt's reading, so it takes as many steps as it has tokens, less one.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    steps = max((n for group in answers for n in group), default=1) - 1
    tokens = sum(n * (n - 1) / 2 for group in answers for n in group)
    tokens += sum(prompt * (max(group, default=1) - 1) for prompt, group in zip(prompts, answers, strict=True))
    return {"bytes": steps * weights + tokens * per_token(model), "decoding_steps": float(steps)}


def per_token(model: nn.Module) -> int:
    """Bytes of a token's keys and values in all layers, in the model's own type."""
    config: Any = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * next(model.parameters()).element_size()


def total(each: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of several calls."""
    return {name: sum(one[name] for one in each) for name in ("bytes", "decoding_steps")}
