"""What credit assignment is: judged groups of rollouts go in, trained samples with their columns come out.

A credit is composed, not inherited: `Rewards` (the signal) draws and judges, and hands what it got to one of them.
`GroupCredit` compares the answers to one prompt, `CriticCredit` asks a critic; another one may wrap either. What a
credit has to remember (a coefficient, a multiplier) is its state, and lies in every checkpoint.
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
"""The units of a step with their columns, and the figures of how they were decided."""


class Credit(Protocol):
    """Turns a step's judged rollouts into what is trained."""

    @property
    def needs_reference(self) -> bool:
        """Whether it reads the reference's log-probabilities."""
        ...

    def __call__(self, groups: Groups, judged: Judged, ref_logps: Sequence[Tensor] | None) -> Credited:
        """judged: one outcome per rollout. ref_logps: float32 [T] of every rollout in order, or None without a
        reference. A rollout whose outcome is no Score is in neither the units nor any baseline."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-able; with `restore`, the next step is credited as in an undisturbed run."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


def to_sample(rollout: Rollout) -> Sample:
    """The rollout token for token; `old_logps` and `sampler_logps` are the log-probabilities it was drawn with."""
    logps = torch.tensor(rollout.logps, dtype=torch.float32)
    return Sample(
        torch.tensor(rollout.tokens, dtype=torch.int64),
        torch.tensor(rollout.mask, dtype=torch.bool),
        {"old_logps": logps, "sampler_logps": logps},
        {"group": rollout.group, "version": rollout.version, "task": rollout.task.id},
    )


def answer_kl(rollout: Rollout, ref_logps: Tensor) -> float:
    """The k1 estimate of an answer's KL from the reference, in nats; ref_logps [T] of the whole rollout."""
    mask = torch.tensor(rollout.mask)
    return kl_in_reward(torch.tensor(rollout.logps)[mask], ref_logps[mask])
