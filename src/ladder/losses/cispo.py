"""CISPO: REINFORCE with a bounded importance weight; no token's gradient is cut, only its weight.

MiniMax-M1, arXiv:2506.13585, eq. 4 and 5:

    loss_t = -stop[clip(r_t, ratio_min, ratio_max)] A_t logp_t,     r_t = exp(logp_t - old_t)

The bounds are named by what they bound, the ratio itself: a peer's `epsilon_high` of 0.2 read as such a bound
turns every ratio above 0.2 into a constant. The paper bounds from above only, as do the defaults here; it states
no number, 5 is what its users recommend.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ladder.contract.batch import Batch, Out
from ladder.losses.terms import Metrics, PolicyTerms, column, finite_at_least, ratio_metrics, require


@dataclass(frozen=True, kw_only=True)
class CISPO(PolicyTerms):
    """ratio_max >= 1: the largest weight a token may have. ratio_min in [0, 1]: the smallest (0: no bound)."""

    ratio_max: float = 5.0
    ratio_min: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = finite_at_least(self.ratio_max, 1.0)
        hint = f"give 1 or more (5 is usual); if you meant an epsilon, that is {1 + self.ratio_max:g}"
        require(ok, "ratio_max", f"bounds the ratio itself, which is 1 on-policy, got {self.ratio_max}", hint)
        ok = 0 <= self.ratio_min <= 1
        require(ok, "ratio_min", f"bounds the ratio itself, got {self.ratio_min}", "give a number in [0, 1]")

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        log_ratio = out.logps - column(batch, "old_logps", out.logps)
        A = column(batch, "advantages", out.logps)
        ratio = log_ratio.detach().exp()
        weight = ratio.clamp(self.ratio_min, self.ratio_max)
        return self.finish(-weight * A * out.logps, out, batch, ratio_metrics(log_ratio, weight != ratio))
