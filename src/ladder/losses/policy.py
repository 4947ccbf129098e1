"""Policy-gradient losses with one ratio per token: REINFORCE and PPO's clip, with the settings of GRPO, Dr. GRPO, DAPO.

REINFORCE (Williams 1992):          loss_t = -A_t logp_t
PPO clip (Schulman et al. 2017, arXiv:1707.06347, eq. 7), r_t = exp(logp_t - old_t):
                                    loss_t = -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)
dual clip (Ye et al. 2020, arXiv:1912.09729, eq. 5), for A_t < 0 only:
                                    loss_t = min(that, -dual_clip A_t)

Other papers' losses are settings of these two: GRPO (arXiv:2402.03300) unit="sequence"; Dr. GRPO (arXiv:2503.20783)
unit="padded" with advantages "group_mean"; DAPO (arXiv:2503.14476) unit="token", clip_high=0.28; RLOO
(arXiv:2402.14740) PolicyGradient(unit="padded", length=1) with advantages "leave_one_out".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ladder.contract.batch import Batch, Out
from ladder.losses.terms import Metrics, PolicyTerms, column, finite_at_least, ratio_metrics, require


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(PolicyTerms):
    """REINFORCE, -A logp: no importance ratio, so it is correct only for on-policy data."""

    def _reads_old(self) -> bool:
        return False

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        A = column(batch, "advantages", out.logps)
        return self.finish(-A * out.logps, out, batch, {})


@dataclass(frozen=True, kw_only=True)
class PolicyClip(PolicyTerms):
    """PPO's clipped surrogate.

    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]. dual_clip: upper bound (> 1; 3 is
    usual) of the ratio of tokens with a negative advantage; None for no bound.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip(self.clip_low, self.clip_high)
        ok = self.dual_clip is None or (finite_at_least(self.dual_clip, 1.0) and self.dual_clip > 1)
        require(ok, "dual_clip", f"must be above 1, got {self.dual_clip}", "3 is usual, null for no bound")

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        log_ratio = out.logps - column(batch, "old_logps", out.logps)
        A = column(batch, "advantages", out.logps)
        surrogate, clipped = clip(log_ratio, A, self.clip_low, self.clip_high, self.dual_clip)
        return self.finish(surrogate, out, batch, ratio_metrics(log_ratio, clipped))


def check_clip(clip_low: float, clip_high: float) -> None:
    ok = 0 <= clip_low < 1
    require(ok, "clip_low", f"must be in [0, 1), got {clip_low}", "the lower bound of the ratio is 1 - clip_low")
    ok = finite_at_least(clip_high, 0)
    require(ok, "clip_high", f"must be 0 or more, got {clip_high}", "the upper bound of the ratio is 1 + clip_high")


def clip(log_ratio: Tensor, A: Tensor, low: float, high: float, dual: float | None) -> tuple[Tensor, Tensor]:
    """Returns -min(r A, clip(r) A) with the dual clip, and whether the clip removed the gradient (bool), in the input's
    shape.

    The min bounds r from above where A > 0 and from below where A < 0. The logarithm of the ratio is clamped, so that a
    ratio that overflows has gradient 0 and not 0 * inf.
    """
    non_negative = A >= 0
    upper = torch.full_like(log_ratio, math.inf if dual is None else math.log(dual))
    lower = torch.full_like(log_ratio, math.log1p(-low))
    upper, lower = upper.masked_fill(non_negative, math.log1p(high)), lower.masked_fill(non_negative, -math.inf)
    clamped = log_ratio.clamp(lower, upper)
    return -A * clamped.exp(), (clamped != log_ratio).detach()
