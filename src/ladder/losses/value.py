"""The critic's loss: squared error of the value, whose move from the old value is clipped as the policy's ratio is.

    loss_t = max((v_t - R_t)^2, (clip(v_t, old_t - clip, old_t + clip) - R_t)^2) / 2

Schulman et al. 2017, arXiv:1707.06347, and their implementation (openai/baselines, ppo2), which clips; the max
makes the loss a bound from above, so a value that has moved far in the right direction stops, one that has moved in
the wrong direction does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ladder.contract.batch import Batch, Out
from ladder.losses.terms import Metrics, column, require


@dataclass(frozen=True, kw_only=True)
class ValueClip:
    """clip: how far a value may move in one batch; None for no bound. returns, old_values: the columns that it reads,
    which tell the critics of one policy apart."""

    clip: float | None = 0.2
    returns: str = "returns"
    old_values: str = "old_values"

    def __post_init__(self) -> None:
        ok = self.clip is None or (math.isfinite(self.clip) and self.clip > 0)
        require(ok, "clip", f"bounds how far a value moves, got {self.clip}", "give 0.2, or null for no bound")

    @property
    def unit(self) -> Literal["token"]:
        return "token"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.returns,) if self.clip is None else (self.returns, self.old_values)

    @property
    def entropy(self) -> bool:
        return False

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, Metrics]:
        assert out.values is not None, "this model has no scalar head"
        values, returns = out.values, column(batch, self.returns, out.values)
        error = (values - returns).square()
        each = 0.5 * error
        metrics = {"values/mean": values.detach(), "returns/mean": returns, "values/error": error.detach()}
        if self.clip is not None:
            old = column(batch, self.old_values, values)
            held = (values.clamp(old - self.clip, old + self.clip) - returns).square()
            each = 0.5 * torch.maximum(error, held)
            metrics["values/clipped"] = (held > error).to(values.dtype)
        return each, metrics
