"""The attention function that Signal Ladder registers in transformers; a `Plan` decides which keys a query sees.

Training attends within packed sequences and sampling reads a key-value cache; both use the same modules with different
plans: `model(input_ids=..., position_ids=..., use_cache=False, plan=plan)`. transformers passes unknown keyword
arguments on to the attention function, and builds no mask for an attention implementation without a mask function.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from ladder.attention.sdpa import masked_attention

__all__ = ["IMPLEMENTATION", "Plan", "attention", "masked_attention"]

IMPLEMENTATION = "ladder"


class Plan(Protocol):
    """Computes attention for one forward pass: it knows where keys and values are and which of them a query sees."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, window: int, softcap: float
    ) -> Tensor:
        """q [B, H, L, D], k and v [B, H_kv, L, D], rotary positions already applied -> [B, L, H, D].

        window: a query sees keys at distance < window (0: all). softcap: Gemma 2's tanh bound on scores (0: none).
        """
        ...


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    plan: Plan | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. Raises ValueError without a plan, and for dropout and attention sinks, which
    no plan supports."""
    if plan is None:
        raise ValueError(
            "this model was loaded with Signal Ladder's attention: call it with plan=..., "
            "or load it with transformers alone"
        )
    if dropout:
        raise ValueError("attention dropout must be 0: with dropout the ratio at step 0 is not 1")
    if others.get("s_aux") is not None:
        raise ValueError(f"{type(module).__name__} uses attention sinks, which are not supported")
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = plan.attend(
        layer, query, key, value, scaling=scale, window=sliding_window or 0, softcap=softcap or 0.0
    )
    return out, None


AttentionInterface.register(IMPLEMENTATION, attention)
