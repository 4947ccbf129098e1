"""Credit by a critic: PPO as in RLHF.

    rewards of every token (score at the end, minus the KL to the reference on the way) and the critic's values
    -> GAE (`credit/gae.py`) -> "advantages" for the policy, "returns" and "old_values" for the critic

Schulman et al. 2017, arXiv:1707.06347; with the KL in the reward as in Ziegler et al. 2019 and Ouyang et al. 2022. An
answer that could not be judged is left out and counted; no answer is compared with another.

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
    """critic: the columns of the critic as it is now. gamma, lam: of GAE. kl_coef: weight of the k1 penalty a token.
    adaptive: moves that weight so that the KL of an answer stays near its target. missing_eos_penalty: taken off the
    score of an answer that was cut off. name: of the critic's figures, where there are several. returns, old_values:
    the columns that its loss reads (`losses.ValueClip`)."""

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
        """The weight of the KL in the reward, as it is now."""
        return self.adaptive.coef if self.adaptive is not None else self.kl_coef

    def __call__(self, groups: Groups, judged: Judged, ref_logps: Sequence[Tensor] | None) -> Credited:
        """All judged answers with the policy's and the critic's columns."""
        flat = [(r, o) for g, outcomes in zip(groups, judged, strict=True) for r, o in zip(g, outcomes, strict=True)]
        kept = [(i, r, o) for i, (r, o) in enumerate(flat) if isinstance(o, Score) and r.length > 0]
        samples = [to_sample(r) for _, r, _ in kept]
        masks = [s.mask.numpy() for s in samples]
        values = [c["values"].double().numpy() for c in self.critic(samples)]
        refs = [None if ref_logps is None else ref_logps[i].numpy() for i, _, _ in kept]
        coef = self.coefficient
        rewards = [
            self._token_rewards(r, o, at, m, coef) for (_, r, o), at, m in zip(kept, refs, masks, strict=True)
        ]
        advantages, returns = gae(rewards, values, masks, gamma=self.gamma, lam=self.lam)
        figures = {f"{self.name}/explained": explained_variance(values, returns, masks), "kl_coef": coef}
        if self.whitened:
            advantages = whiten(advantages, masks)
        for sample, A, R, V, at in zip(samples, advantages, returns, values, refs, strict=True):
            columns = {"advantages": A, self.returns: R, self.old_values: V} | ({} if at is None else {"ref_logps": at})
            sample.cols |= {name: torch.from_numpy(np.asarray(x)).float() for name, x in columns.items()}
        if self.adaptive is not None and ref_logps is not None and kept:
            self.adaptive.update(float(np.mean([answer_kl(r, ref_logps[i]) for i, r, _ in kept])))
            figures["kl_coef/next"] = self.adaptive.coef
        return list(samples), {k: v for k, v in figures.items() if math.isfinite(v)}

    def state(self) -> dict[str, Any]:
        return {} if self.adaptive is None else {"adaptive": self.adaptive.state()}

    def restore(self, state: dict[str, Any]) -> None:
        if self.adaptive is not None:
            self.adaptive.restore(state["adaptive"])

    def _token_rewards(
        self, rollout: Rollout, score: Score, ref: np.ndarray | None, mask: np.ndarray, coef: float
    ) -> np.ndarray:
        return token_rewards(
            score.value,
            np.asarray(rollout.logps),
            ref,
            mask,
            kl_coef=coef,
            stop=rollout.stop,
            missing_eos_penalty=self.missing_eos_penalty,
        )
