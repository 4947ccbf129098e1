"""Attention of a padded batch under an explicit mask, with Gemma 2's soft bound on scores. Needs torch only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
