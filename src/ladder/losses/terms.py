"""What every policy loss shares: entropy bonus, KL term, truncated importance correction, and the unit.

    loss_t = w_t * surrogate_t  +  kl_coef * k(logp_t, ref_t)  -  entropy_coef * H_t
    w_t    = min(exp(old_t - sampler_t), importance_cap), a constant          (Yao et al. 2025, truncated IS)

w corrects for a sampler whose log-probabilities differ from the engine's (vLLM, quantised weights): "old_logps" are
then recomputed by the engine and "sampler_logps" are what the tokens were drawn with. Both KL and entropy speak
of the policy as it is now and are not weighted.

Left out: masking instead of capping the weight, adaptive coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from ladder.base.errors import UserError
from ladder.contract.batch import Batch, Out
from ladder.losses.kl import ESTIMATORS, Estimator, kl

Unit = Literal["token", "sequence", "padded"]
Metrics = dict[str, Tensor]


def require(ok: bool, field: str, message: str, hint: str) -> None:
    """Raises UserError on the field of a loss's configuration."""
    if not ok:
        raise UserError(message, field=field, hint=hint)


def finite_at_least(value: float, low: float) -> bool:
    return math.isfinite(value) and value >= low


def column(batch: Batch, name: str, like: Tensor) -> Tensor:
    """The column, [N] as the log-probabilities are (a [S] here would broadcast into nonsense)."""
    col = batch.cols[name]
    assert col.shape == like.shape, f"{name}: {tuple(col.shape)}, log-probabilities: {tuple(like.shape)}"
    return col


@dataclass(frozen=True, kw_only=True)
class PolicyTerms:
    """The fields and the last steps common to all policy losses.

    unit: what the sum is divided by. "token": all trained tokens of the step (DAPO). "sequence": each answer's
    mean over its tokens, then the mean over answers (original GRPO: a token of a long answer weighs less).
    "padded": answers x `length`, a constant (Dr. GRPO); with length=1 an answer's tokens are summed, the exact
    policy gradient of REINFORCE and RLOO. length: for "padded" only, usually the most tokens an answer may have.
    entropy: whether the entropy is computed and logged. entropy_coef: weight of the entropy bonus.
    kl_coef, kl: weight and estimator (`ladder.losses.kl`) of the KL to "ref_logps"; "k1" trains nothing, "k3" is
    biased.
    importance_cap: cap of the importance weight of "old_logps" over "sampler_logps"; None reads no such column.
    Raises UserError for what cannot be meant.
    """

    unit: Unit = "token"
    length: int | None = None
    entropy: bool = True
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    kl: Estimator = "k2"
    importance_cap: float | None = None

    def __post_init__(self) -> None:
        units, cap = get_args(Unit), self.importance_cap
        require(self.unit in units, "unit", f"{self.unit!r} is no unit", f"one of {', '.join(units)}")
        require(self.kl in ESTIMATORS, "kl", f"{self.kl!r} is no estimator", f"one of {', '.join(ESTIMATORS)}")
        if self.unit == "padded":
            ok = self.length is not None and self.length >= 1
            require(ok, "length", f"unit 'padded' divides by it, got {self.length}", "give a positive integer")
        else:
            ok = self.length is None
            require(ok, "length", f"not used by unit {self.unit!r}", "leave it out, or set unit to 'padded'")
        ok = math.isfinite(self.entropy_coef)
        require(ok, "entropy_coef", f"must be finite, got {self.entropy_coef}", "give a finite number")
        ok = self.entropy or not self.entropy_coef
        require(ok, "entropy", "entropy_coef needs the entropy", "set entropy to true or entropy_coef to 0")
        ok = finite_at_least(self.kl_coef, 0.0)
        require(ok, "kl_coef", f"must be 0 or more, got {self.kl_coef}", "a negative KL term drives the policy away")
        ok = cap is None or finite_at_least(cap, 1.0)
        require(ok, "importance_cap", f"caps a ratio around 1, got {cap}", "give 1 or more (2 is usual), or null")

    @property
    def needs(self) -> tuple[str, ...]:
        """Exactly the columns that this configuration reads."""
        optional = {
            "old_logps": self._reads_old() or self.importance_cap is not None,
            "ref_logps": self.kl_coef > 0,
            "sampler_logps": self.importance_cap is not None,
        }
        return ("advantages", *(name for name, read in optional.items() if read))

    def _reads_old(self) -> bool:
        """Whether the surrogate itself reads "old_logps"."""
        return True

    def finish(self, surrogate_N: Tensor, out: Out, batch: Batch, metrics: Metrics) -> tuple[Tensor, Metrics]:
        """Weighs the surrogate, adds the KL and entropy terms, and brings it to the unit: [N], or [S]."""
        each_N = surrogate_N
        if self.importance_cap is not None:
            old, sampler = column(batch, "old_logps", each_N), column(batch, "sampler_logps", each_N)
            drawn = (old - sampler).exp().detach()
            each_N = each_N * drawn.clamp(max=self.importance_cap)
            metrics |= {"importance/mean": drawn, "importance/capped": (drawn > self.importance_cap).float()}
        if self.kl_coef:
            ref = column(batch, "ref_logps", each_N)
            each_N = each_N + self.kl_coef * kl(out.logps, ref, self.kl)
            metrics |= {"kl": kl(out.logps.detach(), ref, "k3")}
        if self.entropy:
            assert out.entropy is not None and out.entropy.shape == each_N.shape
            if self.entropy_coef:
                each_N = each_N - self.entropy_coef * out.entropy
            metrics |= {"entropy": out.entropy.detach()}
        return batch.mean(each_N) if self.unit == "sequence" else each_N, metrics


def ratio_metrics(log_ratio_N: Tensor, clipped_N: Tensor) -> Metrics:
    """Figures of the ratio policy / old, before clipping; on the first step after sampling it must be 1."""
    log_ratio = log_ratio_N.detach()
    ratio = log_ratio.exp()
    return {
        "ratio/mean": ratio,
        "ratio/peak_max": ratio,
        "ratio/clipped": clipped_N.float(),
        "ratio/approx_kl": ratio - 1 - log_ratio,  # k3 of KL(old || policy): the tokens were drawn from old
    }
