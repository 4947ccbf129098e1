"""Rewards and values of every token to advantages and returns: what a policy with a critic is trained on.

Only the tokens that the policy drew (the mask) are steps; the t-th and the (t+1)-th of an answer follow each other
whatever a tool or another speaker wrote between them. V_t is the critic's value before token t is drawn, and 0 after
the last.

    r_t     = -kl_coef (logp_t - ref_t);  the last also gets the answer's score         Ziegler et al. 2019, eq. 2
    delta_t = r_t + gamma V_{t+1} - V_t
    A_t     = delta_t + gamma lam A_{t+1}                                    Schulman et al. 2015, arXiv:1506.02438
    R_t     = A_t + V_t                                                      what the critic is to learn

The KL in the reward is k1, the one that is unbiased there (`ladder.losses.kl`). Whitened advantages have mean 0 and
standard deviation 1 over all drawn tokens of the batch; the returns come from those before whitening.

All arrays are aligned with an answer's tokens, [T], and what comes out is float64, 0 off the mask.

Left out: bootstrapping the value of an answer that was cut off (it is penalised instead).
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
    """One answer's rewards. missing_eos_penalty: taken off the score when the answer was cut off at its length limit.

    Raises ValueError when no token was drawn, when the score is not finite, and for a KL without a reference.
    """
    drawn = _drawn(mask, logps)
    if not math.isfinite(score):
        raise ValueError(f"an answer that could not be judged has no place here: its score is {score}")
    rewards = np.zeros(len(mask))
    if kl_coef:
        if ref_logps is None:
            raise ValueError("kl_coef is set but there is no reference to measure the KL from")
        _drawn(mask, ref_logps)
        rewards[drawn] = -kl_coef * (logps[drawn].astype(np.float64) - ref_logps[drawn])
    rewards[drawn[-1]] += score - (missing_eos_penalty if stop == "length" else 0.0)
    return rewards


def gae(
    rewards: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Arrays, Arrays]:
    """Advantages and returns of every answer of a step.

    Raises UserError on a gamma or lam outside [0, 1], ValueError on shapes that disagree, an answer without a drawn
    token, a reward off the mask (it would be lost) and a number that is not finite.
    """
    for name, factor in (("gamma", gamma), ("lam", lam)):
        if not 0 <= factor <= 1:
            raise UserError(f"must be in [0, 1], got {factor}", field=name, hint="1 and 0.95 are usual")
    where = [_drawn(m, r, v) for r, v, m in zip(rewards, values, masks, strict=True)]
    if not where:
        return [], []
    for reward, mask in zip(rewards, masks, strict=True):
        if reward[~mask].any():
            raise ValueError("a reward stands at a token that the policy did not draw: give it to the one before")
    r, v = _right_aligned(rewards, where), _right_aligned(values, where)
    if not (np.isfinite(r).all() and np.isfinite(v).all()):
        raise ValueError("a reward or a value is not finite")
    ahead = np.concatenate([v[:, 1:], np.zeros((len(v), 1))], 1)
    delta = r + gamma * ahead - v
    A, after = np.empty_like(delta), np.zeros(len(delta))
    for t in reversed(range(delta.shape[1])):
        after = A[:, t] = delta[:, t] + gamma * lam * after
    return _scattered(A, where, masks), _scattered(A + v, where, masks)


def whiten(x: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Arrays:
    """Brings the numbers at all drawn tokens of a step to mean 0 and standard deviation 1; equal ones become 0."""
    where = [_drawn(m, a) for a, m in zip(x, masks, strict=True)]
    if not where:
        return []
    around = centred(np.concatenate([a[at] for a, at in zip(x, where, strict=True)]).astype(np.float64))
    parts = np.split(around / (std(around) + EPS), np.cumsum([len(at) for at in where])[:-1])
    made = [np.zeros(len(m)) for m in masks]
    for full, at, part in zip(made, where, parts, strict=True):
        full[at] = part
    return made


def explained_variance(
    values: Sequence[np.ndarray], returns: Sequence[np.ndarray], masks: Sequence[np.ndarray]
) -> float:
    """1 - var(R - V) / var(R) over all drawn tokens: 1 is a perfect critic, 0 one that knows only the mean.

    NaN when the returns do not vary.
    """
    where = [_drawn(m, v, r) for v, r, m in zip(values, returns, masks, strict=True)]
    V, R = (np.concatenate([a[at] for a, at in zip(x, where, strict=True)]) for x in (values, returns))
    spread = std(centred(R.astype(np.float64)))
    return 1 - (std(centred(R.astype(np.float64) - V)) / spread) ** 2 if spread else math.nan


@dataclass(slots=True)
class AdaptiveKL:
    """A coefficient of the KL that holds the KL of an answer near `target`. Ziegler et al. 2019, arXiv:1909.08593:

        e = clip((KL - target) / target, -0.2, 0.2),   coef <- coef (1 + gain e)

    gain: 0.1 in the paper, once per step.
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
        """kl: of whole answers, averaged over the step. Raises ValueError when it is not finite."""
        if not math.isfinite(kl):
            raise ValueError(f"the KL is {kl}")
        error = min(max((kl - self.target) / self.target, -0.2), 0.2)
        self.coef *= 1 + self.gain * error

    def state(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def restore(self, state: dict[str, Any]) -> None:
        self.coef = float(state["coef"])


def _drawn(mask: np.ndarray, *aligned: np.ndarray) -> np.ndarray:
    """Indices of the drawn tokens."""
    if mask.dtype != np.bool_ or mask.ndim != 1 or any(a.shape != mask.shape for a in aligned):
        shapes = ", ".join(str(a.shape) for a in aligned)
        raise ValueError(f"numbers [T] ({shapes}) need a bool mask of that shape, got {mask.dtype} {mask.shape}")
    drawn = np.flatnonzero(mask)
    if not drawn.size:
        raise ValueError("an answer of which no token was drawn has no advantage")
    return drawn


def _right_aligned(x: Sequence[np.ndarray], where: Arrays) -> np.ndarray:
    """The drawn tokens' numbers, float64 [B, longest]; every row ends with its last one, so that a walk from the end
    meets all answers at their end. What stands before a row's first is 0."""
    made = np.zeros((len(x), max(len(at) for at in where)))
    for row, a, at in zip(made, x, where, strict=True):
        row[len(row) - len(at) :] = a[at]
    return made


def _scattered(rows: np.ndarray, where: Arrays, masks: Sequence[np.ndarray]) -> Arrays:
    """The inverse: [T] each, 0 off the mask."""
    made = [np.zeros(len(m)) for m in masks]
    for full, row, at in zip(made, rows, where, strict=True):
        full[at] = row[len(row) - len(at) :]
    return made
