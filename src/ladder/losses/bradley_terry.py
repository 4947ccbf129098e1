"""Bradley-Terry: the loss of a reward model, which learns scores of answers from pairwise preferences.

With v the scalar head's score of a whole sequence, c the chosen and r the rejected answer, s the logistic function:

    loss = -log s(v_c - v_r - margin) + centring (v_c + v_r)^2

Bradley and Terry 1952; as in Ouyang et al. 2022, arXiv:2203.02155, eq. 1. margin: Touvron et al. 2023,
arXiv:2307.09288, eq. 2. The first term does not change if a constant is added to all scores; the second (Eisenstein et
al. 2023, arXiv:2312.09244) keeps them around 0.

The score of a sequence is the sum of `out.values` over its trained positions. It has one trained position, at its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ladder.contract.batch import Batch, Out
from ladder.losses.preference import PairTerms, pair_margins, won
from ladder.losses.terms import Metrics, finite_at_least, require


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(PairTerms):
    """margins: whether the score difference must exceed the column "margins". centring: weight of the centring term;
    0.01 is usual."""

    margins: bool = False
    centring: float = 0.0

    def __post_init__(self) -> None:
        ok = finite_at_least(self.centring, 0.0)
        require(ok, "centring", f"must be 0 or more, got {self.centring}", "0.01 is usual")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("margins",) if self.margins else ()

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        assert out.values is not None, "this model has no scalar head"
        chosen_P, rejected_P = batch.pairs(batch.sum(out.values))
        d_P = chosen_P - rejected_P
        loss_P = -logsigmoid(d_P - pair_margins(batch, out.values) if self.margins else d_P)
        if self.centring:
            loss_P = loss_P + self.centring * (chosen_P + rejected_P).square()
        scores = torch.cat([chosen_P, rejected_P]).detach()
        metrics = {"accuracy": won(chosen_P, rejected_P), "margin": d_P.detach(), "score/mean": scores}
        return loss_P, metrics
