"""Credit with a critic: PPO as in RLHF.

    token rewards (score at the last token, minus the KL penalty at every token) and the critic's values
    -> GAE (`credit/gae.py`) -> "advantages" for the policy, "returns" and "old_values" for the critic

Schulman et al. 2017, arXiv:1707.06347; with the KL in the reward as in Ziegler et al. 2019 and Ouyang et al. 2022. An
answer that could not be judged is left out and counted. Answers are not compared with one another.

Left out: a critic that shares weights with the policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.contract.rollouts import Groups, Judged, Rollout, Score
from ladder.contract.training import Reference
from ladder.credit.base import Credited, answer_kl, to_sample
from ladder.credit.gae import AdaptiveKL, explained_variance, gae, token_rewards, whiten


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticCredit:
    """Advantages and returns from a critic's values.

    critic: computes the column "values" with the critic's current weights. gamma, lam: of GAE. whitened: whether the
    advantages are whitened over the batch. kl_coef: weight of the k1 penalty per token. adaptive: adapts that weight
    to hold the KL of an answer near a target. missing_eos_penalty: subtracted from the score of a truncated answer.
    name: prefix of the critic's figures, for runs with several critics. returns, old_values: names of the columns
    that the critic's loss reads (`losses.ValueClip`).
    """

    critic: Reference
    gamma: float = 1.0
    lam: float = 0.95
    whitened: bool = True
    kl_coef: float = 0.0
    adaptive: AdaptiveKL | None = None
    missing_eos_penalty: float = 0.0
    name: str = "critic"
    returns: str = "returns"
    old_values: str = "old_values"

    @property
    def needs_reference(self) -> bool:
        return self.coefficient > 0

    @property
    def coefficient(self) -> float:
        """The current weight of the KL penalty in the reward."""
        return self.adaptive.coef if self.adaptive is not None else self.kl_coef

    def __call__(self, groups: Groups, judged: Judged, ref_logps: Sequence[Tensor] | None) -> Credited:
        """All judged answers as samples, with the columns of the policy's and the critic's losses."""
        flat = [(r, o) for g, outcomes in zip(groups, judged, strict=True) for r, o in zip(g, outcomes, strict=True)]
        scored = [(i, r, o) for i, (r, o) in enumerate(flat) if isinstance(o, Score) and r.length > 0]
        samples = [to_sample(r) for _, r, _ in scored]
        masks = [s.mask.numpy() for s in samples]
        values = [c["values"].double().numpy() for c in self.critic(samples)]
        refs = [None if ref_logps is None else ref_logps[i].numpy() for i, _, _ in scored]
        coef = self.coefficient
        rewards = [
            self._token_rewards(r, o, ref, m, coef) for (_, r, o), ref, m in zip(scored, refs, masks, strict=True)
        ]
        advantages, returns = gae(rewards, values, masks, gamma=self.gamma, lam=self.lam)
        figures = {f"{self.name}/explained": explained_variance(values, returns, masks), "kl_coef": coef}
        if self.whitened:
            advantages = whiten(advantages, masks)
        for sample, A, R, V, ref in zip(samples, advantages, returns, values, refs, strict=True):
            columns = {"advantages": A, self.returns: R, self.old_values: V}
            if ref is not None:
                columns["ref_logps"] = ref
            sample.cols |= {name: torch.from_numpy(np.asarray(x)).float() for name, x in columns.items()}
        if self.adaptive is not None and ref_logps is not None and scored:
            self.adaptive.update(float(np.mean([answer_kl(r, ref_logps[i]) for i, r, _ in scored])))
            figures["kl_coef/next"] = self.adaptive.coef
        return list(samples), {k: v for k, v in figures.items() if math.isfinite(v)}

    def state(self) -> dict[str, Any]:
        return {} if self.adaptive is None else {"adaptive": self.adaptive.state()}

    def restore(self, state: dict[str, Any]) -> None:
        if self.adaptive is not None:
            self.adaptive.restore(state["adaptive"])

    def _token_rewards(
        self, rollout: Rollout, score: Score, ref_logps: np.ndarray | None, mask: np.ndarray, coef: float
    ) -> np.ndarray:
        return token_rewards(
            score.value,
            np.asarray(rollout.logps),
            ref_logps,
            mask,
            kl_coef=coef,
            stop=rollout.stop,
            missing_eos_penalty=self.missing_eos_penalty,
        )
