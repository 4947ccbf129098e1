"""The prompts of a step: which tasks its rollouts are sampled for. Each task comes once per epoch, in an order fixed by
the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ladder.base import rng
from ladder.contract.rollouts import Task


@dataclass(slots=True)
class Prompts:
    """`per_step` tasks a step, each task once per epoch, in an order fixed by the seed."""

    tasks: Sequence[Task]
    per_step: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.per_step <= len(self.tasks):
            raise ValueError(f"{self.per_step} prompts a step out of {len(self.tasks)} tasks")

    def __call__(self, step: int) -> list[Task]:
        """The tasks of a step (counted from 0)."""
        n = len(self.tasks)
        orders: dict[int, np.ndarray] = {}
        step_tasks: list[Task] = []
        for position in range(step * self.per_step, (step + 1) * self.per_step):
            epoch = position // n
            if epoch not in orders:
                orders[epoch] = rng.np_rng(self.seed, "prompts", epoch).permutation(n)
            step_tasks.append(self.tasks[orders[epoch][position % n]])
        return step_tasks
