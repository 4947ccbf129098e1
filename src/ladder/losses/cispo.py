"""CISPO: REINFORCE with a clipped importance weight. Every token keeps its gradient; only its weight is clipped.

MiniMax-M1, arXiv:2506.13585, eq. 4 and 5:

    loss_t = -stop[clip(r_t, ratio_min, ratio_max)] A_t logp_t,     r_t = exp(logp_t - old_t)

ratio_min and ratio_max bound the ratio itself, not its distance from 1: an `epsilon_high` of 0.2 passed as ratio_max
would clip every ratio above 0.2. The paper has an upper bound only, as have the defaults here. It gives no value; 5 is
the value recommended by users of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ladder.contract.batch import Batch, Out
from ladder.losses.terms import Metrics, PolicyTerms, column, finite_at_least, ratio_metrics, require


@dataclass(frozen=True, kw_only=True)
class CISPO(PolicyTerms):
    """ratio_max >= 1: the largest weight of a token. ratio_min in [0, 1]: the smallest weight (0: no bound)."""

    ratio_max: float = 5.0
    ratio_min: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = finite_at_least(self.ratio_max, 1.0)
        hint = f"give 1 or more (5 is usual); an epsilon of {self.ratio_max:g} is a ratio_max of {1 + self.ratio_max:g}"
        message = f"must be 1 or more, because it bounds the ratio, which is 1 on-policy; got {self.ratio_max}"
        require(ok, "ratio_max", message, hint)
        ok = 0 <= self.ratio_min <= 1
        require(ok, "ratio_min", f"must be in [0, 1], got {self.ratio_min}", "give 0 for no lower bound")

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        log_ratio = out.logps - column(batch, "old_logps", out.logps)
        A = column(batch, "advantages", out.logps)
        ratio = log_ratio.detach().exp()
        weight = ratio.clamp(self.ratio_min, self.ratio_max)
        return self.finish(-weight * A * out.logps, out, batch, ratio_metrics(log_ratio, weight != ratio))
