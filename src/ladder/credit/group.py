"""Credit by comparison within a group: the advantage of a whole answer, the same at each of its tokens.

GRPO, RLOO, Dr. GRPO, REINFORCE++ and their relatives; `advantages.py` has the formulas. An answer whose reward failed
leaves both the loss and its group's baseline. A group whose advantages are all 0 has nothing to say and is not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.contract.rollouts import Groups, Judged, Score
from ladder.contract.training import Unit
from ladder.credit.advantages import Kind, advantages
from ladder.credit.base import Credited, answer_kl, to_sample


@dataclass(frozen=True, slots=True)
class GroupCredit:
    """advantage: how rewards become advantages. kl_coef: weight of the k1 penalty (log-probability ratio to the
    reference) taken off the reward, summed over the answer. drop_zero_variance: leave out groups without any advantage
    (False when the loss holds a KL term that they should feel). skip_truncated: answers cut off at the length limit are
    not trained (they stay in the baseline)."""

    advantage: Kind = "group_std"
    kl_coef: float = 0.0
    drop_zero_variance: bool = True
    skip_truncated: bool = False

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def __call__(self, groups: Groups, judged: Judged, ref_logps: Sequence[Tensor] | None) -> Credited:
        rewards, valid = self._rewards(groups, judged, ref_logps)
        scores = advantages(self.advantage, rewards, valid)
        silent = [not s[ok].any() for s, ok in zip(scores, valid, strict=True)]
        figures = {"groups/no_signal": float(np.mean(silent))}
        means = [v[ok].mean() for v, ok in zip(rewards, valid, strict=True) if ok.any()]
        if self.kl_coef and means:
            figures["reward/penalised"] = float(np.mean(means))
        return self._units(groups, scores, valid, ref_logps), figures

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def _rewards(
        self, groups: Groups, judged: Judged, ref: Sequence[Tensor] | None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Rewards (less the KL penalty) and validity of every group, [G] each."""
        at, rewards, valid = 0, [], []
        for group, outcomes in zip(groups, judged, strict=True):
            values = np.array([o.value if isinstance(o, Score) else np.nan for o in outcomes], np.float64)
            ok = np.array([isinstance(o, Score) and r.length > 0 for o, r in zip(outcomes, group, strict=True)])
            if self.kl_coef and ref is not None:
                for i, r in enumerate(group):
                    values[i] -= self.kl_coef * answer_kl(r, ref[at + i])
            at += len(group)
            rewards.append(values)
            valid.append(ok)
        return rewards, valid

    def _units(
        self, groups: Groups, scores: list[np.ndarray], valid: list[np.ndarray], ref: Sequence[Tensor] | None
    ) -> list[Unit]:
        units: list[Unit] = []
        at = 0
        for group, advantage, ok in zip(groups, scores, valid, strict=True):
            silent = self.drop_zero_variance and not advantage[ok].any()
            for i, rollout in enumerate(group):
                here, at = at, at + 1
                if silent or not ok[i] or (self.skip_truncated and rollout.stop == "length"):
                    continue
                sample = to_sample(rollout)
                sample.cols["advantages"] = torch.full((len(sample.tokens),), float(advantage[i]))
                if ref is not None:
                    sample.cols["ref_logps"] = ref[here]
                units.append(sample)
        return units
