"""The critic's loss: squared error of the value, clipped around the old value as PPO clips the policy's ratio.

    loss_t = max((v_t - R_t)^2, (clip(v_t, old_t - clip, old_t + clip) - R_t)^2) / 2

Schulman et al. 2017, arXiv:1707.06347; the clip is that of their implementation (openai/baselines, ppo2). The max makes
the loss an upper bound: a value that has moved towards the return beyond the clip range gets no gradient, one that has
moved away from it does.
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
    """clip: half-width of the clip range around the old value; None for no clip. returns, old_values: names of the
    columns that it reads, which differ between several critics of one policy."""

    clip: float | None = 0.2
    returns: str = "returns"
    old_values: str = "old_values"

    def __post_init__(self) -> None:
        ok = self.clip is None or (math.isfinite(self.clip) and self.clip > 0)
        require(ok, "clip", f"must be above 0, got {self.clip}", "0.2 is usual, null for no clip")

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
        error_N = (values - returns).square()
        loss_N = 0.5 * error_N
        metrics = {"values/mean": values.detach(), "returns/mean": returns, "values/error": error_N.detach()}
        if self.clip is not None:
            old = column(batch, self.old_values, values)
            clipped_error_N = (values.clamp(old - self.clip, old + self.clip) - returns).square()
            loss_N = 0.5 * torch.maximum(error_N, clipped_error_N)
            metrics["values/clipped"] = (clipped_error_N > error_N).to(values.dtype)
        return loss_N, metrics
