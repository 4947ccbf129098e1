"""Problems of the world as a task source, dealt so that no problem of the test split occurs anywhere in training."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from ladder.base import rng
from ladder.contract.rollouts import Task
from ladder.tasks import split as deal
from ladder.tasks.chain.words import DELTAS, DIGITS_A, EQUALS, LABELS, OPS_A
from ladder.tasks.chain.world import WORLD
from ladder.tasks.world import World

TEST_SHARE = 0.25
SPLITS = ("train", "test")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Chain:
    """steps: fewest and most operations, drawn evenly. size: problems in the training split. seed: which ones."""

    steps: tuple[int, int] = (3, 6)
    size: int = 4096
    seed: int = 0
    world: ClassVar[World] = WORLD

    @model_validator(mode="after")
    def _possible(self) -> Chain:
        low, high = self.steps
        if not 1 <= low <= high <= len(LABELS):
            raise ValueError(f"steps must be within 1 and {len(LABELS)}, the fewest first")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        """Distinct problems of a split. Raises UserError when there are fewer than n."""
        deal.known(split, self.splits)
        wanted = self.size if n is None else n
        r, found, tried = rng.np_rng(self.seed, "chain", split, *self.steps), {}, 0
        while len(found) < wanted and tried < 50 * wanted + 10_000:
            start, ops = draw(r, self.steps)
            tried += 1
            if is_test(start, ops) == (split == "test"):
                found[problem(start, ops)] = answer(start, ops)
        tasks = [
            Task(f"chain/{split}/{i}", prompt, gold, {"steps": prompt.count(" ") // 2})
            for i, (prompt, gold) in enumerate(found.items())
        ]
        return deal.first(tasks, wanted, split)


def draw(r: np.random.Generator, steps: tuple[int, int]) -> tuple[int, np.ndarray]:
    """A start digit and operations."""
    k = int(r.integers(steps[0], steps[1] + 1))
    return int(r.integers(10)), r.integers(0, len(DELTAS), k)


def problem(start: int, ops: np.ndarray) -> str:
    """Its text, up to and with the equals sign."""
    parts = [DIGITS_A[start]]
    for label, op in zip(LABELS, ops, strict=False):
        parts += [label, OPS_A[op]]
    return " ".join([*parts, EQUALS])


def answer(start: int, ops: np.ndarray) -> str:
    return DIGITS_A[(start + sum(DELTAS[op] for op in ops)) % 10]


def is_test(start: int, ops: np.ndarray) -> bool:
    """Whether a problem is of the test split: a function of the problem alone."""
    return bool(in_test(np.array([start]), np.asarray(ops)[None], np.array([len(ops)]))[0])


def in_test(starts: np.ndarray, ops: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The same for many: starts [n], ops [n, >= steps], steps [n] -> bool [n]."""
    code = starts.astype(np.uint64)
    for i in range(ops.shape[1]):
        with np.errstate(over="ignore"):
            mixed = (code * np.uint64(5) + ops[:, i].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        code = np.where(i < steps, mixed ^ (mixed >> np.uint64(29)), code)
    return (code >> np.uint64(40)).astype(np.float64) / 2.0**24 < TEST_SHARE
