"""The one attention function of the house, registered in transformers; what it attends to is a `Plan`.

Training packs sequences end to end and sampling reads a cache; both are the same modules with another plan:
`model(input_ids=..., position_ids=..., use_cache=False, plan=plan)`. transformers hands unknown keyword
arguments down to the attention function and builds no mask for an implementation it has no mask for.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from ladder.attention.sdpa import masked_attention

__all__ = ["IMPLEMENTATION", "Plan", "attention", "masked_attention"]

IMPLEMENTATION = "ladder"


class Plan(Protocol):
    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, window: int, softcap: float
    ) -> Tensor:
        """q [B, H, L, D], k and v [B, H_kv, L, D], already rotated -> [B, L, H, D].

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
    """transformers' attention interface. Raises ValueError for what no plan here can do."""
    if plan is None:
        raise ValueError("this model was loaded for Signal Ladder: call it with plan=..., or reload it without")
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
