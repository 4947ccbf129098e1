"""Preference losses on pairs (DPO, IPO, hinge, SimPO, ORPO): one number per pair from the scores of its two answers.

With sum logp and mean logp over an answer's trained tokens, c the chosen, r the rejected answer, s the logistic:

    answer's score     DPO, hinge: beta (sum logp - sum ref)      IPO: beta (sum logp - sum ref), or of the means
                       SimPO: beta mean logp                      ORPO: log(p / (1 - p)), log p = mean logp
    d = score_c - score_r
    DPO     -(1 - eps) log s(d) - eps log s(-d);   -log s(d - margin) with margins
    IPO     (d / beta - 1 / (2 beta))^2
    hinge   max(0, 1 - d)
    SimPO   -log s(d - gamma)
    ORPO    -mean logp_c - odds_coef log s(d)

DPO: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; eps is conservative DPO (Mitchell 2023,
https://ericmitchell.ai/cdpo.pdf, eq. 3); margins as in DPO with an offset (Amini et al. 2024, arXiv:2402.10571).
IPO: Azar et al. 2023, arXiv:2310.12036, eq. 17 (their tau is beta). Hinge: with a reference RSO's hinge-norm (Liu et
al. 2023, arXiv:2309.06657), without one the calibration loss of SLiC-HF (Zhao et al. 2023, arXiv:2305.10425), whose
margin delta is 1 / beta. SimPO: Meng et al. 2024, arXiv:2405.14734, eq. 6. ORPO: Hong et al. 2024, arXiv:2403.07691.

Left out: SLiC-HF's regulariser and other sums of a pair loss and cross-entropy (ORPO is one by definition).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ladder.contract.batch import Batch, Out
from ladder.losses.terms import Metrics, column, finite_at_least, require


@dataclass(frozen=True, kw_only=True)
class PairTerms:
    """The properties common to all losses on pairs.

    at_reference: the loss of a policy that equals its reference, which the first step is checked against; None if it
    is not a constant.
    """

    @property
    def unit(self) -> Literal["pair"]:
        return "pair"

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    @property
    def entropy(self) -> bool:
        return False

    @property
    def at_reference(self) -> float | None:
        return None


@dataclass(frozen=True, kw_only=True)
class DPO(PairTerms):
    """beta: strength of the implicit KL penalty. label_smoothing: the assumed share of pairs with swapped labels.
    margins: whether d must exceed the column "margins" (in the units of d)."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    margins: bool = False

    def __post_init__(self) -> None:
        check_beta(self.beta)
        smoothing = self.label_smoothing
        ok = 0 <= smoothing < 0.5
        hint = "it is the share of pairs with swapped labels"
        require(ok, "label_smoothing", f"must be in [0, 0.5), got {smoothing}", hint)
        ok = not (self.margins and smoothing)
        require(ok, "margins", "cannot be combined with label_smoothing", "set label_smoothing to 0")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("ref_logps", "margins") if self.margins else ("ref_logps",)

    @property
    def at_reference(self) -> float | None:
        return None if self.margins else math.log(2)

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        score_S = self.beta * batch.sum(log_ratio(out, batch))
        d_P = difference(score_S, batch)
        if self.margins:
            d_P = d_P - pair_margins(batch, out.logps)
        loss_P = -(1 - self.label_smoothing) * logsigmoid(d_P)
        if self.label_smoothing:
            loss_P = loss_P - self.label_smoothing * logsigmoid(-d_P)
        return loss_P, pair_metrics(score_S, out, batch)


@dataclass(frozen=True, kw_only=True)
class IPO(PairTerms):
    """log_ratio: "sum" over an answer's tokens is the paper's; "mean" makes long and short answers comparable, and beta
    then has a different scale (1 / (2 beta) is the target per token)."""

    beta: float = 0.1
    log_ratio: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        check_beta(self.beta)
        ok = self.log_ratio in ("sum", "mean")
        require(ok, "log_ratio", f"{self.log_ratio!r} is not a reduction over an answer's tokens", "one of sum, mean")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("ref_logps",)

    @property
    def at_reference(self) -> float:
        return (0.5 / self.beta) ** 2

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        reduce = batch.mean if self.log_ratio == "mean" else batch.sum
        ratio_S = reduce(log_ratio(out, batch))
        loss_P = (difference(ratio_S, batch) - 0.5 / self.beta).square()
        return loss_P, pair_metrics(self.beta * ratio_S, out, batch)


@dataclass(frozen=True, kw_only=True)
class Hinge(PairTerms):
    """A pair whose log-ratios differ by 1 / beta or more has no gradient. reference: False compares log-probabilities
    without a reference (SLiC-HF)."""

    beta: float = 0.1
    reference: bool = True

    def __post_init__(self) -> None:
        check_beta(self.beta)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("ref_logps",) if self.reference else ()

    @property
    def at_reference(self) -> float | None:
        return 1.0 if self.reference else None

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        score_N = log_ratio(out, batch) if self.reference else out.logps
        score_S = self.beta * batch.sum(score_N)
        return (1 - difference(score_S, batch)).relu(), pair_metrics(score_S, out, batch)


@dataclass(frozen=True, kw_only=True)
class SimPO(PairTerms):
    """No reference; scores are means over tokens, so length has no effect. gamma: the target margin of the scores (the
    authors advise half of beta)."""

    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_beta(self.beta)
        ok = finite_at_least(self.gamma, 0.0)
        require(ok, "gamma", f"must be 0 or more, got {self.gamma}", "half of beta is usual")

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        score_S = self.beta * batch.mean(out.logps)
        return -logsigmoid(difference(score_S, batch) - self.gamma), pair_metrics(score_S, out, batch)


@dataclass(frozen=True, kw_only=True)
class ORPO(PairTerms):
    """Cross-entropy of the chosen answer plus a log-odds-ratio term weighted by odds_coef (the paper's lambda)."""

    odds_coef: float = 0.1

    def __post_init__(self) -> None:
        ok = finite_at_least(self.odds_coef, 0.0)
        require(ok, "odds_coef", f"must be 0 or more, got {self.odds_coef}", "the paper uses 0.1 to 0.25")

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        mean_S = batch.mean(out.logps)
        nll_P = -batch.pairs(mean_S)[0]
        odds_S = log_odds(mean_S)
        loss_P = nll_P - self.odds_coef * logsigmoid(difference(odds_S, batch))
        return loss_P, pair_metrics(odds_S, out, batch) | {"nll": nll_P.detach()}


# ---------------------------------------------------------------- shared functions


def check_beta(beta: float) -> None:
    ok = math.isfinite(beta) and beta > 0
    require(ok, "beta", f"must be above 0, got {beta}", "0.1 is usual (2 for SimPO)")


def log_ratio(out: Out, batch: Batch) -> Tensor:
    """log(policy / reference) of each token, [N]. Subtracting per token gives exactly 0 for a policy that equals its
    reference, whatever the answer's length."""
    return out.logps - column(batch, "ref_logps", out.logps)


def difference(score_S: Tensor, batch: Batch) -> Tensor:
    """Chosen minus rejected score, [P]."""
    chosen_P, rejected_P = batch.pairs(score_S)
    return chosen_P - rejected_P


def pair_margins(batch: Batch, like: Tensor) -> Tensor:
    """The column "margins", which is constant over a pair, as [P]."""
    return batch.pairs(batch.first(column(batch, "margins", like)))[0]


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logp).

    1 - p is computed as -expm1(logp), which is accurate for p near 1; for p near 0, log(1 - p) is below the rounding
    error of logp. A p that rounds to 1 is replaced by 1 - eps, with the gradient there.
    """
    below_1 = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    logp = logp + (below_1 - logp).detach()
    return logp - (-logp.expm1()).log()


def pair_metrics(score_S: Tensor, out: Out, batch: Batch) -> Metrics:
    """Metrics of pairs. rewards: the scores that the loss compares. accuracy: 1 if the chosen score is higher, a tie
    counts 0.5."""
    chosen_P, rejected_P = batch.pairs(score_S.detach())
    logp_chosen_P, logp_rejected_P = batch.pairs(batch.sum(out.logps.detach()))
    return {
        "rewards/chosen": chosen_P,
        "rewards/rejected": rejected_P,
        "rewards/margin": chosen_P - rejected_P,
        "accuracy": won(chosen_P, rejected_P),
        "logps/chosen": logp_chosen_P,
        "logps/rejected": logp_rejected_P,
    }


def won(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """1 where the chosen score is higher, 0.5 where both are equal, else 0."""
    return 0.5 * ((chosen_P > rejected_P).to(chosen_P.dtype) + (chosen_P >= rejected_P).to(chosen_P.dtype))
