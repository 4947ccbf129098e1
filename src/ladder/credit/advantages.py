"""Advantages of whole answers from their rewards: the one place where groups are averaged.

For a group of n judged answers with rewards r and mean m:

    group_mean             A_i = r_i - m                                   Dr. GRPO, arXiv:2503.20783
    group_std              A_i = (r_i - m) / (std + EPS)                   GRPO, arXiv:2402.03300
    leave_one_out          A_i = r_i - mean of the others = n/(n-1) (r_i - m)   RLOO, arXiv:2402.14740
    reinforce_pp           A_i = (r_i - M) / (STD + EPS), over the whole batch   REINFORCE++, arXiv:2501.03262
    reinforce_pp_baseline  A_i = (r_i - m) / (STD of all r - m + EPS)      its "-baseline" variant

Answers that could not be judged are out of every mean and get NaN, which no loss may ever see. Answers that all
got the same reward get exactly 0 (in their group, or for reinforce_pp in the batch), and so does a judged answer
that stands alone: it has nothing to be compared with. A std is the unbiased one (n - 1), as in TRL and verl, so
that their recipes carry over. Everything is float64 in two passes (mean, then deviations from it).

Left out: REINFORCE++'s token-level rewards and its weighting by tokens (here every answer weighs the same).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, assert_never, get_args

import numpy as np

from ladder.base.errors import UserError

Kind = Literal["group_mean", "group_std", "leave_one_out", "reinforce_pp", "reinforce_pp_baseline"]
KINDS: tuple[Kind, ...] = get_args(Kind)

EPS = 1e-6
"""Keeps rewards that differ by rounding only from being blown up to an advantage of 1."""
LARGEST = 1e100
"""Rewards beyond this would overflow when squared."""


def advantages(kind: Kind, rewards: Sequence[np.ndarray], valid: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Advantages of every group of one step: float64 [G] each, NaN where `valid` is False.

    rewards: [G] of each group; what stands where `valid` is False is not read. valid: bool [G] of each group.
    Raises UserError on an unknown kind, ValueError on shapes or types that disagree and on a valid reward that is
    not finite.
    """
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no advantage", field="advantage", hint=f"one of {', '.join(KINDS)}")
    judged = [_judged(r, v) for r, v in zip(rewards, valid, strict=True)]
    return [_scatter(a, v) for a, v in zip(_of(kind, judged), valid, strict=True)]


def _of(kind: Kind, groups: list[np.ndarray]) -> list[np.ndarray]:
    match kind:
        case "group_mean":
            return [centred(r) for r in groups]
        case "group_std":
            return [c / (std(c) + EPS) for c in map(centred, groups)]
        case "leave_one_out":
            return [centred(r) * (len(r) / max(len(r) - 1, 1)) for r in groups]
        case "reinforce_pp":
            whole = centred(np.concatenate(groups)) if groups else np.zeros(0)
            return _split(whole / (std(whole) + EPS), groups)
        case "reinforce_pp_baseline":
            # every group is centred, so the batch is: subtracting its mean would only add rounding
            whole = np.concatenate([centred(r) for r in groups]) if groups else np.zeros(0)
            return _split(whole / (std(whole) + EPS), groups)
        case _:
            assert_never(kind)


def centred(r: np.ndarray) -> np.ndarray:
    """r minus its mean; exactly 0 when all are equal. Measured from the smallest, so a common offset cancels."""
    if not len(r):
        return r
    above = r - r.min()
    return above - math.fsum(above) / len(r)


def std(x: np.ndarray) -> float:
    """Unbiased standard deviation of numbers whose mean is 0; 0 for fewer than two."""
    if len(x) < 2:
        return 0.0
    return math.sqrt(math.fsum(x * x) / (len(x) - 1))


def _judged(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The valid rewards in float64."""
    if valid.dtype != np.bool_ or rewards.ndim != 1 or rewards.shape != valid.shape:
        raise ValueError(f"rewards [G] {rewards.shape} need a bool mask of that shape, got {valid.dtype} {valid.shape}")
    kept = rewards[valid].astype(np.float64)
    if not (np.abs(kept) <= LARGEST).all():
        raise ValueError(f"a reward that counts as valid is not finite (or beyond {LARGEST:g}): {kept}")
    return kept


def _scatter(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    full = np.full(valid.shape, np.nan)
    full[valid] = values
    return full


def _split(whole: np.ndarray, groups: list[np.ndarray]) -> list[np.ndarray]:
    return np.split(whole, np.cumsum([len(g) for g in groups])[:-1]) if groups else []
