"""Sampling tokens: one uniform number per (request, sample, position), turned into a token by the inverse CDF.

The number is a hash (splitmix64, Steele et al. 2014) of key, sample and position, so a sample's tokens do not depend on
the other rows of the batch, nor on the number of slots. The inverse CDF is computed in blocks, so a vocabulary of 49k
needs no sort and no cumulative sum over all of it.

Temperature and truncation are applied in the usual order: temperature, top-k, top-p, min-p. Log-probabilities are those
of the resulting distribution; greedy decoding (temperature 0) reports the model's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.contract.rollouts import Sampling
from ladder.kernels import decode, dispatch

BLOCK = 128
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def streams(key: int, sample: int, n: int, drawn: int = 0) -> np.ndarray:
    """The states, uint64 [n], of the streams of uniform numbers of some samples after `drawn` tokens."""
    places = np.uint64(key % 2**64) + np.arange(sample, sample + n, dtype=np.uint64) * _GOLDEN
    return _splitmix(places) + np.array([drawn], np.uint64) * _GOLDEN


def stream(key: int, sample: int, drawn: int = 0) -> int:
    """The state of one sample's stream."""
    return int(streams(key, sample, 1, drawn)[0])


def uniforms(streams_A: np.ndarray, positions_A: np.ndarray) -> Tensor:
    """float64 in [0, 1) for each row. streams_A: uint64 from `stream`; positions_A: tokens drawn since that state."""
    with np.errstate(over="ignore"):
        bits = _splitmix(streams_A + (positions_A.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _splitmix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def draw(logits_AV: Tensor, uniform_A: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens int64 [A] and log-probabilities float32 [A] under the sampled distribution. Overwrites the logits."""
    plain = not (sampling.top_k or sampling.top_p < 1 or sampling.min_p)
    if plain and sampling.temperature > 0:
        by = kernels(logits_AV)
        if by is not None:
            return by.draw(logits_AV, uniform_A, sampling.temperature)
    z = logits_AV.float()
    if sampling.temperature == 0:
        tokens = z.argmax(-1)
        return tokens, z.softmax(-1).gather(1, tokens[:, None])[:, 0].log()
    if sampling.temperature != 1:
        z = z.div_(sampling.temperature)
    if not plain:
        z = truncate(z, sampling)
    p = z.softmax(-1)
    tokens, total = inverse_cdf(p, uniform_A)
    return tokens, (p.gather(1, tokens[:, None])[:, 0] / total).log()


def kernels(logits_AV: Tensor) -> Any:
    """The module with sampling kernels for these logits, or None."""
    if logits_AV.stride(1) != 1:
        return None
    if logits_AV.device.type == "cuda":
        return dispatch.kernels(logits_AV)
    fits = logits_AV.device.type == "cpu" and logits_AV.dtype == torch.float32
    return decode if fits and decode.kernels() is not None else None


def inverse_cdf(weights_AV: Tensor, uniform_A: Tensor) -> tuple[Tensor, Tensor]:
    """The token whose interval of the cumulative weights contains uniform * total: (tokens [A], totals [A])."""
    A, V = weights_AV.shape
    if V % BLOCK:
        weights_AV = torch.nn.functional.pad(weights_AV, (0, BLOCK - V % BLOCK))
    blocks = weights_AV.view(A, -1, BLOCK)
    ends = blocks.sum(-1).double().cumsum(-1)  # [A, blocks]
    total = ends[:, -1]
    target = (uniform_A.to(total.device) * total)[:, None]
    block = (ends <= target).sum(-1).clamp_(max=ends.shape[1] - 1)
    begin = (ends.gather(1, block[:, None]) - blocks.sum(-1).double().gather(1, block[:, None]))
    inside = blocks[torch.arange(A, device=block.device), block]  # [A, BLOCK]
    within = inside.double().cumsum(-1) + begin
    # rounding can leave the target beyond the block's end: then its last token with any weight
    last = (inside > 0).long().mul_(torch.arange(1, BLOCK + 1, device=block.device)).amax(-1) - 1
    token = torch.minimum((within <= target).sum(-1), last)
    return block * BLOCK + token, total.float()


def truncate(z_AV: Tensor, sampling: Sampling) -> Tensor:
    """Sets the logits that top-k, top-p and min-p exclude to -inf. The most probable token always stays."""
    if sampling.top_k:
        kth = z_AV.topk(min(sampling.top_k, z_AV.shape[-1]), -1).values[:, -1:]
        z_AV = z_AV.masked_fill(z_AV < kth, float("-inf"))
    if sampling.top_p < 1:
        ranked, order = z_AV.sort(-1, descending=True)
        p = ranked.softmax(-1)
        outside = p.cumsum(-1) - p >= sampling.top_p
        outside[:, 0] = False
        z_AV = z_AV.masked_fill(torch.zeros_like(outside).scatter_(1, order, outside), float("-inf"))
    if sampling.min_p:
        p = z_AV.softmax(-1)
        z_AV = z_AV.masked_fill(p < sampling.min_p * p.amax(-1, keepdim=True), float("-inf"))
    return z_AV
