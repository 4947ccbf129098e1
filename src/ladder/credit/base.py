"""The protocol of credit assignment: judged groups of rollouts in, training samples with their columns out.

A credit is composed, not inherited: the signal `Rewards` samples and judges rollouts and passes them to one credit.
`GroupCredit` compares the answers to one prompt, `CriticCredit` uses a critic; another credit may wrap either. The
state of a credit (a coefficient, a multiplier) is saved in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ladder.contract.rollouts import Groups, Judged, Rollout
from ladder.contract.training import Sample, Unit
from ladder.losses.kl import kl_in_reward

Credited = tuple[list[Unit], dict[str, float]]
"""The units of a step with their columns, and the figures of the credit assignment."""


class Credit(Protocol):
    """Turns the judged rollouts of a step into training samples."""

    @property
    def needs_reference(self) -> bool:
        """Whether the credit reads the log-probabilities of the reference."""
        ...

    def __call__(self, groups: Groups, judged: Judged, ref_logps: Sequence[Tensor] | None) -> Credited:
        """Fills the columns of a step's rollouts.

        judged: one outcome per rollout. ref_logps: float32 [T] of every rollout in order, or None without a
        reference. A rollout whose outcome is not a Score is in neither the units nor any baseline.
        """
        ...

    def state(self) -> dict[str, Any]:
        """JSON-serialisable state. After `restore`, the next step is credited as in an uninterrupted run."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


def to_sample(rollout: Rollout) -> Sample:
    """The rollout as a sample; `old_logps` and `sampler_logps` are the log-probabilities from sampling."""
    logps = torch.tensor(rollout.logps, dtype=torch.float32)
    return Sample(
        torch.tensor(rollout.tokens, dtype=torch.int64),
        torch.tensor(rollout.mask, dtype=torch.bool),
        {"old_logps": logps, "sampler_logps": logps},
        {"group": rollout.group, "version": rollout.version, "task": rollout.task.id},
    )


def answer_kl(rollout: Rollout, ref_logps: Tensor) -> float:
    """The k1 estimate of KL(policy || reference) of an answer, in nats. ref_logps: [T], of the whole rollout."""
    mask = torch.tensor(rollout.mask)
    return kl_in_reward(torch.tensor(rollout.logps)[mask], ref_logps[mask])
