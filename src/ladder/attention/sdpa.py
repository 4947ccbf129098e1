"""Attention over a padded batch with an explicit mask, and with Gemma 2's soft cap on scores. Needs torch only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, *, scaling: float, softcap: float = 0.0
) -> Tensor:
    """Attention over a padded batch: q [B, H, L, D], k and v [B, H_kv, M, D], visible bool [B, 1, L, M] -> q's shape.

    Every query must see at least one key.
    """
    group_size = q.shape[1] // k.shape[1]  # query heads that share a key head
    if not softcap:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, scale=scaling, enable_gqa=group_size > 1
        )
    if group_size > 1:
        k, v = k.repeat_interleave(group_size, 1), v.repeat_interleave(group_size, 1)
    scores = softcap * ((q @ k.transpose(-1, -2)) * (scaling / softcap)).tanh()
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v
