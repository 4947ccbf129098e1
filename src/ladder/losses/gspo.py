"""GSPO: one importance ratio per answer, clipped per answer. Zheng et al. 2025, arXiv:2507.18071.

    s_i   = exp(mean over t of (logp_t - old_t))                                          (eq. 7)
    s_i,t = stop[s_i] * p_t / stop[p_t]                                                   (eq. 14, GSPO-token)
    loss_t = -min(s_i,t A_t, clip(s_i,t, 1 - clip_low, 1 + clip_high) A_t)                (eq. 13)

This is the token form (GSPO-token): with one advantage per answer and unit "sequence" its value and gradient equal
those of eq. 5, and the advantages may also differ from token to token. The clip range is narrow because s is a
geometric mean of token ratios, which stays near 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ladder.contract.batch import Batch, Out
from ladder.losses.policy import check_clip, clip
from ladder.losses.terms import LossUnit, Metrics, PolicyTerms, column, ratio_metrics


@dataclass(frozen=True, kw_only=True)
class GSPO(PolicyTerms):
    """clip_low, clip_high: the clip range of the answer's ratio is [1 - clip_low, 1 + clip_high]; the defaults and the
    unit "sequence" are the paper's."""

    unit: LossUnit = "sequence"
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
        # the share of clipped answers, large by design with so narrow a range; not comparable with a share of tokens,
        # so it has a different name
        metrics["ratio/clipped_answers"] = metrics.pop("ratio/clipped")
        return self.finish(surrogate, out, batch, metrics)
