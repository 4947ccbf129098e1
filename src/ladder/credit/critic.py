"""Rewards with a critic as a signal: PPO as in RLHF. What differs from group advantages is who fills the column.

    rewards of every token (score at the end, minus the KL to the reference on the way) and the critic's values
    -> GAE (`signals/gae.py`) -> "advantages" for the policy, "returns" and "old_values" for the critic

Schulman et al. 2017, arXiv:1707.06347; with the KL in the reward as in Ziegler et al. 2019 and Ouyang et al. 2022. An
answer that could not be judged is left out and counted; there are no groups to be silent.

Left out: a critic that shares weights with the policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.contract.rollouts import Groups, Judged, Score
from ladder.contract.training import Reference, Unit
from ladder.credit.gae import AdaptiveKL, explained_variance, gae, token_rewards, whiten
from ladder.signals.rewards import Rewards, answer_kl, to_sample


@dataclass(slots=True, kw_only=True)
class CriticRewards(Rewards):
    """critic: the columns of the critic as it is now. gamma, lam: of GAE. adaptive: moves kl_coef so that the KL of an
    answer stays near its target. missing_terminator: taken off the score of an answer that was cut off."""

    critic: Reference
    gamma: float = 1.0
    lam: float = 0.95
    whitened: bool = True
    adaptive: AdaptiveKL | None = None
    missing_terminator: float = 0.0

    def state(self) -> dict[str, Any]:
        own = Rewards.state(self)
        return own if self.adaptive is None else own | {"adaptive": self.adaptive.state()}

    def restore(self, state: dict[str, Any]) -> None:
        Rewards.restore(self, state)
        if self.adaptive is not None:
            self.adaptive.restore(state["adaptive"])

    def _train_on(
        self, groups: Groups, judged: Judged, ref: list[Tensor] | None
    ) -> tuple[list[Unit], dict[str, float]]:
        """All judged answers with the policy's and the critic's columns."""
        flat = [(r, o) for g, outcomes in zip(groups, judged, strict=True) for r, o in zip(g, outcomes, strict=True)]
        kept = [(i, r, o) for i, (r, o) in enumerate(flat) if isinstance(o, Score) and r.length > 0]
        samples = [to_sample(r) for _, r, _ in kept]
        masks = [s.mask.numpy() for s in samples]
        values = [c["values"].double().numpy() for c in self.critic(samples)]
        refs = [None if ref is None else ref[i].numpy() for i, _, _ in kept]
        coef = self.adaptive.coef if self.adaptive is not None else self.kl_coef
        rewards = [
            token_rewards(
                o.value,
                np.asarray(r.logps),
                at,
                m,
                kl_coef=coef,
                stop=r.stop,
                missing_terminator=self.missing_terminator,
            )
            for (_, r, o), at, m in zip(kept, refs, masks, strict=True)
        ]
        advantages, returns = gae(rewards, values, masks, gamma=self.gamma, lam=self.lam)
        figures = {"critic/explained": explained_variance(values, returns, masks), "kl_coef": coef}
        if self.whitened:
            advantages = whiten(advantages, masks)
        for sample, A, R, V, at in zip(samples, advantages, returns, values, refs, strict=True):
            named = {"advantages": A, "returns": R, "old_values": V} | ({} if at is None else {"ref_logps": at})
            sample.cols |= {name: torch.from_numpy(np.asarray(x)).float() for name, x in named.items()}
        if self.adaptive is not None and ref is not None and kept:
            self.adaptive.update(float(np.mean([answer_kl(r, ref[i]) for i, r, _ in kept])))
            figures["kl_coef/next"] = self.adaptive.coef
        return list(samples), {k: v for k, v in figures.items() if math.isfinite(v)}
