"""GSPO: the ratio of a whole answer, clipped as a whole. Zheng et al. 2025, arXiv:2507.18071.

    s_i   = exp(mean over t of (logp_t - old_t))                                          (eq. 7)
    s_i,t = stop[s_i] * p_t / stop[p_t]                                                   (eq. 14, GSPO-token)
    loss_t = -min(s_i,t A_t, clip(s_i,t, 1 - clip_low, 1 + clip_high) A_t)                (eq. 13)

The token form is used: with one advantage per answer and unit "sequence" its value and gradient are eq. 5's, and
advantages may also differ from token to token. The clip is narrow because s is a geometric mean near 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ladder.contract.batch import Batch, Out
from ladder.losses.policy import check_clip, clip
from ladder.losses.terms import Metrics, PolicyTerms, Unit, column, ratio_metrics


@dataclass(frozen=True, kw_only=True)
class GSPO(PolicyTerms):
    """clip_low, clip_high: how far the answer's ratio may be from 1; the paper's values, per unit "sequence"."""

    unit: Unit = "sequence"
    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip(self.clip_low, self.clip_high)

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        log_ratio = out.logps - column(batch, "old_logps", out.logps)
        A = column(batch, "advantages", out.logps)
        log_s = batch.spread(batch.mean(log_ratio)).detach() + (out.logps - out.logps.detach())
        surrogate, clipped = clip(log_s, A, self.clip_low, self.clip_high, None)
        metrics = ratio_metrics(log_s, clipped)
        # bounds this narrow clip a large share by design: no token's ratio, so under a name of its own
        metrics["ratio/clipped_answers"] = metrics.pop("ratio/clipped")
        return self.finish(surrogate, out, batch, metrics)
