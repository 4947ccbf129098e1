"""The one attention function of the house, registered in transformers; what it attends to is a `Plan`.

Training packs sequences end to end and sampling reads a cache; both are the same modules with another plan:
`model(input_ids=..., position_ids=..., use_cache=False, plan=plan)`. transformers hands unknown keyword
arguments down to the attention function and builds no mask for an implementation it has no mask for.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

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
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    out = plan.attend(
        layer, query, key, value, scaling=scaling, window=sliding_window or 0, softcap=softcap or 0.0
    )
    return out, None


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, *, scaling: float, softcap: float = 0.0
) -> Tensor:
    """Attention of a padded batch: q [B, H, L, D], k and v [B, H_kv, M, D], visible bool [B, 1, L, M] -> q's shape.

    Every query must see at least one key.
    """
    groups = q.shape[1] // k.shape[1]
    if not softcap:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, scale=scaling, enable_gqa=groups > 1
        )
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = softcap * ((q @ k.transpose(-1, -2)) * (scaling / softcap)).tanh()
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v


AttentionInterface.register(IMPLEMENTATION, attention)
