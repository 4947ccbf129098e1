"""Credit by comparison within a group: one advantage per answer, assigned to each of its tokens.

GRPO, RLOO, Dr. GRPO, REINFORCE++ and their relatives; the formulas are in `advantages.py`. An answer whose reward
failed is excluded from the loss and from its group's baseline. A group whose advantages are all 0 is not trained.
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
from ladder.credit.advantages import AdvantageKind, advantages
from ladder.credit.base import Credited, answer_kl, to_sample


@dataclass(frozen=True, slots=True)
class GroupCredit:
    """Advantages from the rewards of a group.

    advantage: the estimator (`advantages.py`). kl_coef: weight of the k1 penalty (log-probability ratio to the
    reference, summed over the answer), subtracted from the reward. drop_zero_variance: leave out groups whose
    advantages are all 0 (set it to False if the loss has a KL term that should act on them). skip_truncated: do not
    train answers that were truncated at the length limit (they stay in the baseline).
    """

    advantage: AdvantageKind = "group_std"
    kl_coef: float = 0.0
    drop_zero_variance: bool = True
    skip_truncated: bool = False

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def __call__(self, groups: Groups, judged: Judged, ref_logps: Sequence[Tensor] | None) -> Credited:
        rewards, valid = self._rewards(groups, judged, ref_logps)
        group_advantages = advantages(self.advantage, rewards, valid)
        zero_variance = [not a[ok].any() for a, ok in zip(group_advantages, valid, strict=True)]
        figures = {"groups/no_signal": float(np.mean(zero_variance))}
        means = [r[ok].mean() for r, ok in zip(rewards, valid, strict=True) if ok.any()]
        if self.kl_coef and means:
            figures["reward/penalised"] = float(np.mean(means))
        return self._units(groups, group_advantages, valid, ref_logps), figures

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def _rewards(
        self, groups: Groups, judged: Judged, ref_logps: Sequence[Tensor] | None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Rewards (less the KL penalty) and validity of every group, [G] each."""
        first, rewards, valid = 0, [], []
        for group, outcomes in zip(groups, judged, strict=True):
            rewards_G = np.array([o.value if isinstance(o, Score) else np.nan for o in outcomes], np.float64)
            valid_G = np.array([isinstance(o, Score) and r.length > 0 for o, r in zip(outcomes, group, strict=True)])
            if self.kl_coef and ref_logps is not None:
                for i, rollout in enumerate(group):
                    rewards_G[i] -= self.kl_coef * answer_kl(rollout, ref_logps[first + i])
            first += len(group)
            rewards.append(rewards_G)
            valid.append(valid_G)
        return rewards, valid

    def _units(
        self,
        groups: Groups,
        group_advantages: list[np.ndarray],
        valid: list[np.ndarray],
        ref_logps: Sequence[Tensor] | None,
    ) -> list[Unit]:
        """The samples to train, with their columns."""
        units: list[Unit] = []
        first = 0
        for group, advantages_G, valid_G in zip(groups, group_advantages, valid, strict=True):
            dropped = self.drop_zero_variance and not advantages_G[valid_G].any()
            for i, rollout in enumerate(group):
                if dropped or not valid_G[i] or (self.skip_truncated and rollout.stop == "length"):
                    continue
                sample = to_sample(rollout)
                sample.cols["advantages"] = torch.full((len(sample.tokens),), float(advantages_G[i]))
                if ref_logps is not None:
                    sample.cols["ref_logps"] = ref_logps[first + i]
                units.append(sample)
            first += len(group)
        return units
