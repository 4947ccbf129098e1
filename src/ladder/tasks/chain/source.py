"""The task source `chain`. A problem's split is a hash of the problem, so no test problem occurs in training."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from ladder.base import rng
from ladder.contract.rollouts import Task
from ladder.tasks import split as splitting
from ladder.tasks.chain.words import DELTAS, DIGITS_A, EQUALS, LABELS, OPS_A
from ladder.tasks.chain.world import WORLD
from ladder.tasks.world import World

TEST_SHARE = 0.25
SPLITS = ("train", "test")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Chain:
    """The task source. steps: fewest and most operations; the number is uniform between them. size: problems of a split
    if no number is requested. seed: of the problems."""

    steps: tuple[int, int] = (3, 6)
    size: int = 4096
    seed: int = 0
    world: ClassVar[World] = WORLD

    @model_validator(mode="after")
    def _check_steps(self) -> Chain:
        low, high = self.steps
        if not 1 <= low <= high <= len(LABELS):
            raise ValueError(f"steps must be two numbers from 1 to {len(LABELS)}, the smaller one first")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        """n distinct problems of a split (None: `size`). Raises UserError when there are fewer."""
        splitting.known(split, self.splits)
        num_tasks = self.size if n is None else n
        r, answer_of, num_draws = rng.np_rng(self.seed, "chain", split, *self.steps), {}, 0
        while len(answer_of) < num_tasks and num_draws < 50 * num_tasks + 10_000:
            start, ops = draw(r, self.steps)
            num_draws += 1
            if is_test(start, ops) == (split == "test"):
                answer_of[problem(start, ops)] = answer(start, ops)
        tasks = [
            Task(f"chain/{split}/{i}", prompt, gold, {"steps": prompt.count(" ") // 2})
            for i, (prompt, gold) in enumerate(answer_of.items())
        ]
        return splitting.first(tasks, num_tasks, split)


def draw(r: np.random.Generator, steps: tuple[int, int]) -> tuple[int, np.ndarray]:
    """A random problem: its start digit and its operations, indices of `DELTAS` [steps]. steps: fewest and most."""
    k = int(r.integers(steps[0], steps[1] + 1))
    return int(r.integers(10)), r.integers(0, len(DELTAS), k)


def problem(start: int, ops: np.ndarray) -> str:
    """The text of a problem, up to and including the equals sign."""
    parts = [DIGITS_A[start]]
    for label, op in zip(LABELS, ops, strict=False):
        parts += [label, OPS_A[op]]
    return " ".join([*parts, EQUALS])


def answer(start: int, ops: np.ndarray) -> str:
    """The gold answer, a digit."""
    return DIGITS_A[(start + sum(DELTAS[op] for op in ops)) % 10]


def is_test(start: int, ops: np.ndarray) -> bool:
    """Whether a problem belongs to the test split: a hash of the problem."""
    return bool(in_test(np.array([start]), np.asarray(ops)[None], np.array([len(ops)]))[0])


def in_test(starts: np.ndarray, ops: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """`is_test` for n problems: starts [n], ops [n, >= steps], steps [n] -> bool [n]."""
    hashes = starts.astype(np.uint64)
    for i in range(ops.shape[1]):
        with np.errstate(over="ignore"):
            mixed = (hashes * np.uint64(5) + ops[:, i].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        hashes = np.where(i < steps, mixed ^ (mixed >> np.uint64(29)), hashes)
    return (hashes >> np.uint64(40)).astype(np.float64) / 2.0**24 < TEST_SHARE
