"""Policy-gradient losses with one ratio per token: REINFORCE and PPO's clip, with GRPO's, Dr. GRPO's and DAPO's ways.

REINFORCE (Williams 1992):          loss_t = -A_t logp_t
PPO clip (Schulman et al. 2017, arXiv:1707.06347, eq. 7), r_t = exp(logp_t - old_t):
                                    loss_t = -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)
dual clip (Ye et al. 2020, arXiv:1912.09729, eq. 5), for A_t < 0 only:
                                    loss_t = min(that, -dual_clip A_t)

The papers' names are settings of these: GRPO (arXiv:2402.03300) unit="sequence"; Dr. GRPO (arXiv:2503.20783)
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
    """REINFORCE in its plain form -A logp: no ratio, so right only for data that the policy itself just drew."""

    def _reads_old(self) -> bool:
        return False

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        A = column(batch, "advantages", out.logps)
        return self.finish(-A * out.logps, out, batch, {})


@dataclass(frozen=True, kw_only=True)
class PolicyClip(PolicyTerms):
    """PPO's clipped surrogate. clip_low, clip_high: how far below and above 1 a ratio still has a gradient.

    dual_clip: bound (> 1; 3 is usual) on the ratio of tokens with negative advantage; None for none.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip(self.clip_low, self.clip_high)
        ok = self.dual_clip is None or (finite_at_least(self.dual_clip, 1.0) and self.dual_clip > 1)
        require(ok, "dual_clip", f"bounds the ratio above 1, got {self.dual_clip}", "give 3, or null for none")

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        log_ratio = out.logps - column(batch, "old_logps", out.logps)
        A = column(batch, "advantages", out.logps)
        surrogate, clipped = clip(log_ratio, A, self.clip_low, self.clip_high, self.dual_clip)
        return self.finish(surrogate, out, batch, ratio_metrics(log_ratio, clipped))


def check_clip(clip_low: float, clip_high: float) -> None:
    ok = 0 <= clip_low < 1
    require(ok, "clip_low", f"the lower bound is 1 - clip_low, got {clip_low}", "give a number in [0, 1)")
    ok = finite_at_least(clip_high, 0)
    require(ok, "clip_high", f"the upper bound is 1 + clip_high, got {clip_high}", "give 0 or more")


def clip(log_ratio: Tensor, A: Tensor, low: float, high: float, dual: float | None) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r) A) with the dual clip, and where the clip cut the gradient (bool); shapes as given.

    The min bounds r from above where A > 0, from below where A < 0. Clamped as a logarithm, so that a ratio which
    overflows has the gradient 0 and not 0 * inf.
    """
    good = A >= 0
    upper = torch.full_like(log_ratio, math.inf if dual is None else math.log(dual))
    lower = torch.full_like(log_ratio, math.log1p(-low))
    upper, lower = upper.masked_fill(good, math.log1p(high)), lower.masked_fill(good, -math.inf)
    clamped = log_ratio.clamp(lower, upper)
    return -A * clamped.exp(), (clamped != log_ratio).detach()
