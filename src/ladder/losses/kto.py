"""KTO: a preference loss on single answers, each liked or disliked. Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8.

With r = sum over the answer of (logp - ref), z0 the KL of the policy from the reference, s the logistic function:

    liked:     loss = desirable   (1 - s(beta (r - z0)))
    disliked:  loss = undesirable (1 - s(beta (z0 - r)))

z0 estimates the policy's overall KL from the reference on answers that are paired with other prompts. It is a statistic
of the whole batch, so it is a column, clamped at 0 and without gradient, filled before the first forward pass
(`ladder.signals.unpaired.Unpaired`). The paper advises weights with desirable n_liked / (undesirable n_disliked)
between 1 and 4/3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ladder.contract.batch import Batch, Out
from ladder.losses.preference import check_beta, log_ratio
from ladder.losses.terms import Metrics, column, require


@dataclass(frozen=True, kw_only=True)
class KTO:
    """Reads "ref_logps", and "label" (1 liked, 0 disliked) and "kl_z0", constant over each answer.

    beta: strength of the implicit KL penalty. desirable, undesirable: weights of liked and disliked answers.
    """

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0

    def __post_init__(self) -> None:
        check_beta(self.beta)
        for name, weight in (("desirable", self.desirable), ("undesirable", self.undesirable)):
            ok = math.isfinite(weight) and weight > 0
            require(ok, name, f"must be above 0, got {weight}", "1 is the default weight")

    @property
    def unit(self) -> Literal["sequence"]:
        return "sequence"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("ref_logps", "label", "kl_z0")

    @property
    def entropy(self) -> bool:
        return False

    @property
    def at_reference(self) -> float | None:
        """The loss of a policy that equals its reference; None if it depends on the labels."""
        return self.desirable / 2 if self.desirable == self.undesirable else None

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        label_S = batch.first(column(batch, "label", out.logps))
        z0_S = batch.first(column(batch, "kl_z0", out.logps))
        ratio_S = batch.sum(log_ratio(out, batch))
        liked, disliked = label_S == 1, label_S == 0
        # a label that is neither 1 nor 0 gives NaN, which stops the run
        sign_S = torch.full_like(ratio_S, math.nan).masked_fill(liked, 1.0).masked_fill(disliked, -1.0)
        weight_S = torch.full_like(ratio_S, self.undesirable).masked_fill(liked, self.desirable)
        loss_S = weight_S * torch.sigmoid(-self.beta * sign_S * (ratio_S - z0_S))
        reward_S, logp_S = self.beta * ratio_S.detach(), batch.sum(out.logps.detach())
        return loss_S, {
            "rewards/desirable": reward_S[liked],
            "rewards/undesirable": reward_S[disliked],
            "logps/desirable": logp_S[liked],
            "logps/undesirable": logp_S[disliked],
            "kl_z0": z0_S,
        }
