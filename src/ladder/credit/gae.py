"""Generalised advantage estimation (GAE): advantages and returns of tokens from token rewards and a critic's values.

Only the tokens that the policy sampled (the mask) are steps: token t + 1 is the next sampled token, whatever a tool or
another speaker wrote in between. V_t is the critic's value before token t is sampled, and 0 after the last token.

    r_t     = -kl_coef (logp_t - ref_t);  the last also gets the answer's score         Ziegler et al. 2019, eq. 2
    delta_t = r_t + gamma V_{t+1} - V_t
    A_t     = delta_t + gamma lam A_{t+1}                                    Schulman et al. 2015, arXiv:1506.02438
    R_t     = A_t + V_t                                                      the critic's regression target

The KL in the reward is k1, which is unbiased there (`ladder.losses.kl`). Whitened advantages have mean 0 and standard
deviation 1 over all sampled tokens of the batch; the returns are computed from the advantages before whitening.

All arrays are aligned with an answer's tokens, [T]. Results are float64 and 0 outside the mask.

Left out: bootstrapping from the value of a truncated answer (it is penalised instead).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ladder.base.errors import UserError
from ladder.contract.rollouts import Stop
from ladder.credit.advantages import EPS, centred, std

Arrays = list[np.ndarray]


def token_rewards(
    score: float,
    logps: np.ndarray,
    ref_logps: np.ndarray | None,
    mask: np.ndarray,
    *,
    kl_coef: float = 0.0,
    stop: Stop = "eos",
    missing_eos_penalty: float = 0.0,
) -> np.ndarray:
    """Token rewards of one answer, [T]: the KL penalty at every sampled token and the score at the last.

    missing_eos_penalty: subtracted from the score if the answer was truncated at its length limit.
    Raises ValueError if no token was sampled, if the score is not finite, and for a KL without a reference.
    """
    sampled = _sampled_indices(mask, logps)
    if not math.isfinite(score):
        raise ValueError(f"the score of an answer must be finite, got {score}: leave out answers without a Score")
    rewards = np.zeros(len(mask))
    if kl_coef:
        if ref_logps is None:
            raise ValueError("kl_coef is set but there is no reference to measure the KL from")
        _sampled_indices(mask, ref_logps)
        rewards[sampled] = -kl_coef * (logps[sampled].astype(np.float64) - ref_logps[sampled])
    rewards[sampled[-1]] += score - (missing_eos_penalty if stop == "length" else 0.0)
    return rewards


def gae(
    rewards: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Arrays, Arrays]:
    """Advantages and returns of every answer of a step, [T] each.

    Raises UserError on a gamma or lam outside [0, 1], ValueError on shapes that disagree, an answer without a sampled
    token, a reward outside the mask (it would be lost) and a number that is not finite.
    """
    for name, factor in (("gamma", gamma), ("lam", lam)):
        if not 0 <= factor <= 1:
            raise UserError(f"must be in [0, 1], got {factor}", field=name, hint="1 and 0.95 are usual")
    indices = [_sampled_indices(m, r, v) for r, v, m in zip(rewards, values, masks, strict=True)]
    if not indices:
        return [], []
    for reward, mask in zip(rewards, masks, strict=True):
        if reward[~mask].any():
            raise ValueError("a token that the policy did not sample has a reward: move it to the sampled token before")
    r, v = _right_aligned(rewards, indices), _right_aligned(values, indices)
    if not (np.isfinite(r).all() and np.isfinite(v).all()):
        raise ValueError("a reward or a value is not finite")
    next_values = np.concatenate([v[:, 1:], np.zeros((len(v), 1))], 1)
    delta = r + gamma * next_values - v
    A, next_A = np.empty_like(delta), np.zeros(len(delta))
    for t in reversed(range(delta.shape[1])):
        next_A = A[:, t] = delta[:, t] + gamma * lam * next_A
    return _scattered(A, indices, masks), _scattered(A + v, indices, masks)


def whiten(x: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Arrays:
    """Shifts and scales the numbers at all sampled tokens of a step to mean 0 and standard deviation 1; if they are all
    equal, they become 0."""
    indices = [_sampled_indices(m, a) for a, m in zip(x, masks, strict=True)]
    if not indices:
        return []
    deviations = centred(np.concatenate([a[idx] for a, idx in zip(x, indices, strict=True)]).astype(np.float64))
    parts = np.split(deviations / (std(deviations) + EPS), np.cumsum([len(idx) for idx in indices])[:-1])
    whitened = [np.zeros(len(m)) for m in masks]
    for answer, idx, part in zip(whitened, indices, parts, strict=True):
        answer[idx] = part
    return whitened


def explained_variance(
    values: Sequence[np.ndarray], returns: Sequence[np.ndarray], masks: Sequence[np.ndarray]
) -> float:
    """1 - var(R - V) / var(R) over all sampled tokens: 1 for a perfect critic, 0 for one that predicts the mean.

    NaN if the returns do not vary.
    """
    indices = [_sampled_indices(m, v, r) for v, r, m in zip(values, returns, masks, strict=True)]
    V, R = (np.concatenate([a[idx] for a, idx in zip(x, indices, strict=True)]) for x in (values, returns))
    returns_std = std(centred(R.astype(np.float64)))
    return 1 - (std(centred(R.astype(np.float64) - V)) / returns_std) ** 2 if returns_std else math.nan


@dataclass(slots=True)
class AdaptiveKL:
    """An adaptive KL coefficient that holds the KL of an answer near `target`. Ziegler et al. 2019, arXiv:1909.08593:

        e = clip((KL - target) / target, -0.2, 0.2),   coef <- coef (1 + gain e)

    target: in nats per answer. gain: 0.1 in the paper; one update per step.
    """

    coef: float
    target: float
    gain: float = 0.1

    def __post_init__(self) -> None:
        for name in ("coef", "target", "gain"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"must be above 0, got {value}", field=name)
        if self.gain >= 5:
            raise UserError(f"a gain of {self.gain} can make the coefficient 0", field="gain", hint="0.1 is usual")

    def update(self, kl: float) -> None:
        """kl: KL of a whole answer in nats, averaged over the step. Raises ValueError if it is not finite."""
        if not math.isfinite(kl):
            raise ValueError(f"the KL of the answers must be finite, got {kl}")
        error = min(max((kl - self.target) / self.target, -0.2), 0.2)
        self.coef *= 1 + self.gain * error

    def state(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def restore(self, state: dict[str, Any]) -> None:
        self.coef = float(state["coef"])


def _sampled_indices(mask: np.ndarray, *aligned: np.ndarray) -> np.ndarray:
    """Indices of the tokens that the policy sampled. Raises ValueError if there is none, or if shapes disagree."""
    if mask.dtype != np.bool_ or mask.ndim != 1 or any(a.shape != mask.shape for a in aligned):
        shapes = ", ".join(str(a.shape) for a in aligned)
        raise ValueError(f"arrays [T] ({shapes}) need a bool mask of that shape, got {mask.dtype} {mask.shape}")
    indices = np.flatnonzero(mask)
    if not indices.size:
        raise ValueError("an answer without a sampled token has no advantage")
    return indices


def _right_aligned(x: Sequence[np.ndarray], indices: Arrays) -> np.ndarray:
    """The numbers of the sampled tokens, float64 [B, longest], right-aligned so that the backward recursion starts at
    the last token of every answer. Padding on the left is 0."""
    padded = np.zeros((len(x), max(len(idx) for idx in indices)))
    for row, a, idx in zip(padded, x, indices, strict=True):
        row[len(row) - len(idx) :] = a[idx]
    return padded


def _scattered(rows: np.ndarray, indices: Arrays, masks: Sequence[np.ndarray]) -> Arrays:
    """The inverse of `_right_aligned`: [T] each, 0 outside the mask."""
    scattered = [np.zeros(len(m)) for m in masks]
    for answer, row, idx in zip(scattered, rows, indices, strict=True):
        answer[idx] = row[len(row) - len(idx) :]
    return scattered
