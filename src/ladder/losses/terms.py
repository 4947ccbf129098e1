"""The terms that all policy losses share: entropy bonus, KL term, truncated importance sampling (TIS), and the unit.

    loss_t = w_t * surrogate_t  +  kl_coef * k(logp_t, ref_t)  -  entropy_coef * H_t
    w_t    = min(exp(old_t - sampler_t), importance_cap), a constant          (Yao et al. 2025, truncated IS)

w corrects for a sampler whose log-probabilities differ from the engine's (vLLM, quantised weights): the engine then
recomputes "old_logps", and "sampler_logps" are the sampler's log-probabilities of the tokens. The KL and entropy terms
are those of the current policy and are not weighted by w.

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

LossUnit = Literal["token", "sequence", "padded"]
Metrics = dict[str, Tensor]


def require(ok: bool, field: str, message: str, hint: str) -> None:
    """Raises UserError naming a field of a loss's configuration, unless `ok`."""
    if not ok:
        raise UserError(message, field=field, hint=hint)


def finite_at_least(value: float, low: float) -> bool:
    """Whether the value is finite and not below `low`."""
    return math.isfinite(value) and value >= low


def column(batch: Batch, name: str, like: Tensor) -> Tensor:
    """The column of this name, which must have the shape of `like`, [N] (a column [1] would broadcast wrongly)."""
    col = batch.cols[name]
    assert col.shape == like.shape, f"column {name!r} is {tuple(col.shape)}, log-probabilities are {tuple(like.shape)}"
    return col


@dataclass(frozen=True, kw_only=True)
class PolicyTerms:
    """The fields and the final terms common to all policy losses.

    unit: the denominator of the mean. "token": all trained tokens of the step (DAPO). "sequence": the mean over each
    answer's tokens, then the mean over answers (original GRPO: a token of a long answer has less weight).
    "padded": answers x `length`, a constant (Dr. GRPO); with length=1 an answer's tokens are summed, the exact
    policy gradient of REINFORCE and RLOO. length: for "padded" only, usually the maximum length of an answer.
    entropy: whether the entropy is computed and logged. entropy_coef: weight of the entropy bonus.
    kl_coef, kl: weight and estimator (`ladder.losses.kl`) of the KL to "ref_logps"; the gradient of "k1" is zero in
    expectation, that of "k3" is biased.
    importance_cap: upper bound of the importance weight exp(old_logps - sampler_logps); None: no weight, and the
    column "sampler_logps" is not read.
    Raises UserError on values out of range and on fields that conflict.
    """

    unit: LossUnit = "token"
    length: int | None = None
    entropy: bool = True
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    kl: Estimator = "k2"
    importance_cap: float | None = None

    def __post_init__(self) -> None:
        units, cap = get_args(LossUnit), self.importance_cap
        require(self.unit in units, "unit", f"{self.unit!r} is not a unit", f"one of {', '.join(units)}")
        require(self.kl in ESTIMATORS, "kl", f"{self.kl!r} is not a KL estimator", f"one of {', '.join(ESTIMATORS)}")
        if self.unit == "padded":
            ok = self.length is not None and self.length >= 1
            message = f"must be 1 or more with unit 'padded', got {self.length}"
            require(ok, "length", message, "give the maximum length of an answer")
        else:
            ok = self.length is None
            require(ok, "length", f"is not used with unit {self.unit!r}", "leave it out, or set unit to 'padded'")
        ok = math.isfinite(self.entropy_coef)
        require(ok, "entropy_coef", f"must be finite, got {self.entropy_coef}", "give a finite number")
        ok = self.entropy or not self.entropy_coef
        require(ok, "entropy", "must be true if entropy_coef is set", "set entropy to true or entropy_coef to 0")
        ok = finite_at_least(self.kl_coef, 0.0)
        require(ok, "kl_coef", f"must be 0 or more, got {self.kl_coef}", "give 0 for no KL term")
        ok = cap is None or finite_at_least(cap, 1.0)
        require(ok, "importance_cap", f"must be 1 or more, got {cap}", "2 is usual, null for no importance weight")

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that this configuration reads."""
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
        """Weights the surrogate, adds the KL and entropy terms, and averages per answer for the unit "sequence".

        Returns the loss ([N], or [S] for the unit "sequence") and the metrics extended by those of the terms.
        """
        loss_N = surrogate_N
        if self.importance_cap is not None:
            old, sampler = column(batch, "old_logps", loss_N), column(batch, "sampler_logps", loss_N)
            weight_N = (old - sampler).exp().detach()
            loss_N = loss_N * weight_N.clamp(max=self.importance_cap)
            metrics |= {"importance/mean": weight_N, "importance/capped": (weight_N > self.importance_cap).float()}
        if self.kl_coef:
            ref = column(batch, "ref_logps", loss_N)
            loss_N = loss_N + self.kl_coef * kl(out.logps, ref, self.kl)
            metrics |= {"kl": kl(out.logps.detach(), ref, "k3")}
        if self.entropy:
            assert out.entropy is not None and out.entropy.shape == loss_N.shape
            if self.entropy_coef:
                loss_N = loss_N - self.entropy_coef * out.entropy
            metrics |= {"entropy": out.entropy.detach()}
        return batch.mean(loss_N) if self.unit == "sequence" else loss_N, metrics


def ratio_metrics(log_ratio_N: Tensor, clipped_N: Tensor) -> Metrics:
    """Metrics of the ratio policy / old before clipping. In the first update after sampling it must be 1."""
    log_ratio = log_ratio_N.detach()
    ratio = log_ratio.exp()
    return {
        "ratio/mean": ratio,
        "ratio/peak_max": ratio,
        "ratio/clipped": clipped_N.float(),
        "ratio/approx_kl": ratio - 1 - log_ratio,  # k3 of KL(old || policy): the tokens were sampled from old
    }
