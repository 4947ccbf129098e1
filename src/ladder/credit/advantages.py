"""Advantages of whole answers from their rewards: the one implementation of group statistics.

For a group of n judged answers with rewards r and mean m:

    group_mean             A_i = r_i - m                                   Dr. GRPO, arXiv:2503.20783
    group_std              A_i = (r_i - m) / (std + EPS)                   GRPO, arXiv:2402.03300
    leave_one_out          A_i = r_i - mean of the others = n/(n-1) (r_i - m)   RLOO, arXiv:2402.14740
    reinforce_pp           A_i = (r_i - M) / (STD + EPS), over the whole batch   REINFORCE++, arXiv:2501.03262
    reinforce_pp_baseline  A_i = (r_i - m) / (STD of all r - m + EPS)      its "-baseline" variant

An answer that could not be judged is excluded from every mean and std and gets NaN, which must never reach a loss.
If all rewards are equal (in the group, or for reinforce_pp in the batch), the advantages are exactly 0; so is the
advantage of the only judged answer of a group, which has no baseline. A std is the unbiased one (n - 1), as in TRL and
verl, so that their recipes carry over. All arithmetic is float64 in two passes (mean, then deviations from it).

Left out: REINFORCE++'s token-level rewards and its weighting by tokens (here every answer weighs the same).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, assert_never, get_args

import numpy as np

from ladder.base.errors import UserError

AdvantageKind = Literal["group_mean", "group_std", "leave_one_out", "reinforce_pp", "reinforce_pp_baseline"]
ADVANTAGE_KINDS: tuple[AdvantageKind, ...] = get_args(AdvantageKind)

EPS = 1e-6
"""Added to a std, so that rewards which differ only by rounding do not get advantages near 1."""
LARGEST = 1e100
"""Largest absolute reward; the square of a larger one could overflow."""


def advantages(kind: AdvantageKind, rewards: Sequence[np.ndarray], valid: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Advantages of every group of one step: float64 [G] each, NaN where `valid` is False.

    rewards: [G] of each group; entries where `valid` is False are not read. valid: bool [G] of each group.
    Raises UserError on an unknown kind, ValueError on shapes or dtypes that disagree and on a valid reward that is
    not finite.
    """
    if kind not in ADVANTAGE_KINDS:
        hint = f"one of {', '.join(ADVANTAGE_KINDS)}"
        raise UserError(f"{kind!r} is not an advantage estimator", field="advantage", hint=hint)
    valid_rewards = [_valid_rewards(r, v) for r, v in zip(rewards, valid, strict=True)]
    return [_scatter(a, v) for a, v in zip(_estimate(kind, valid_rewards), valid, strict=True)]


def _estimate(kind: AdvantageKind, groups: list[np.ndarray]) -> list[np.ndarray]:
    """Advantages of the valid rewards of every group."""
    match kind:
        case "group_mean":
            return [centred(r) for r in groups]
        case "group_std":
            return [c / (std(c) + EPS) for c in map(centred, groups)]
        case "leave_one_out":
            return [centred(r) * (len(r) / max(len(r) - 1, 1)) for r in groups]
        case "reinforce_pp":
            centred_batch = centred(np.concatenate(groups)) if groups else np.zeros(0)
            return _split(centred_batch / (std(centred_batch) + EPS), groups)
        case "reinforce_pp_baseline":
            # every group has mean 0, so the batch has too: subtracting its mean would only add rounding errors
            centred_batch = np.concatenate([centred(r) for r in groups]) if groups else np.zeros(0)
            return _split(centred_batch / (std(centred_batch) + EPS), groups)
        case _:
            assert_never(kind)


def centred(r: np.ndarray) -> np.ndarray:
    """r minus its mean; exactly 0 if all are equal. The minimum is subtracted first, which cancels a common offset."""
    if not len(r):
        return r
    above_min = r - r.min()
    return above_min - math.fsum(above_min) / len(r)


def std(x: np.ndarray) -> float:
    """Unbiased standard deviation of numbers whose mean is 0; 0 for fewer than two."""
    if len(x) < 2:
        return 0.0
    return math.sqrt(math.fsum(x * x) / (len(x) - 1))


def _valid_rewards(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The valid rewards of a group in float64."""
    if valid.dtype != np.bool_ or rewards.ndim != 1 or rewards.shape != valid.shape:
        raise ValueError(f"rewards [G] {rewards.shape} need a bool mask of that shape, got {valid.dtype} {valid.shape}")
    valid_rewards = rewards[valid].astype(np.float64)
    if not (np.abs(valid_rewards) <= LARGEST).all():
        raise ValueError(f"a reward marked valid is not finite (or beyond {LARGEST:g}): {valid_rewards}")
    return valid_rewards


def _scatter(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Writes the values to the valid positions of a group, NaN to the others."""
    scattered = np.full(valid.shape, np.nan)
    scattered[valid] = values
    return scattered


def _split(batch: np.ndarray, groups: list[np.ndarray]) -> list[np.ndarray]:
    """Splits the values of a batch into groups of the given lengths."""
    return np.split(batch, np.cumsum([len(g) for g in groups])[:-1]) if groups else []
