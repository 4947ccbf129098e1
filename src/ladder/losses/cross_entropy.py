"""Cross-entropy of the trained tokens, for pretraining, SFT, distillation on text and rejection sampling.

    loss_t = -logp_t

Left out: label smoothing (it raises the entropy of a model that reinforcement learning is to start from).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ladder.contract.batch import Batch, Out
from ladder.losses.terms import Metrics, require


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """unit "token": every trained token has the same weight. "sequence": every example has the same weight, whatever
    its length. entropy: whether the entropy is computed and logged."""

    unit: Literal["token", "sequence"] = "token"
    entropy: bool = False

    def __post_init__(self) -> None:
        ok = self.unit in ("token", "sequence")
        require(ok, "unit", f"{self.unit!r} is not a unit of cross-entropy", "one of token, sequence")

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        nll_N = -out.logps
        metrics = {"nll": nll_N.detach()}
        if self.entropy:
            assert out.entropy is not None
            metrics["entropy"] = out.entropy.detach()
        return batch.mean(nll_N) if self.unit == "sequence" else nll_N, metrics
