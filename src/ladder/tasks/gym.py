"""Any reasoning-gym task (Stojanovski et al. 2025, arXiv:2505.24760) by name, scored by its own `score_answer`.

Entry i of a seed is a function of (seed + i) in reasoning-gym, so neighbouring seeds overlap, and a small space (sums
of two digits) repeats itself under any seed. Splits are therefore dealt by a hash of the question, and every question
is given once. The reward is `{gym: {}}` (`ladder.rewards.gym`), which makes the entry again from `meta["gym"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Any

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from ladder.base.errors import UserError, missing_extra
from ladder.base.spec import near
from ladder.contract.rollouts import Message, Task
from ladder.tasks import split as deal

TRIES = 40
"""Entries looked at for each task wanted, before the space is called too small."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Gym:
    """name: reasoning-gym's. config: its options. size: tasks of a split when no number is asked for. valid_share,
    test_share: of all possible questions. prompt: text or messages with {question}, or with fields of the entry's
    metadata ({expression} for chain_sum).
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    size: int = 1000
    valid_share: float = 0.1
    test_share: float = 0.1
    prompt: str | list[Message] = "{question}"

    @model_validator(mode="after")
    def _possible(self) -> Gym:
        deal.check_shares(valid_share=self.valid_share, test_share=self.test_share)
        if not deal.holes(self.prompt):
            raise ValueError("the prompt template must hold {question} or a field of the entry's metadata")
        if {"seed", "size"} & set(self.config):
            raise ValueError("seed and size are not part of config: give them beside it")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        shares = {"valid": self.valid_share, "test": self.test_share}
        return ("train", *(name for name, share in shares.items() if share))

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        """n different tasks. Raises UserError when the space is too small, or the name or config is not known."""
        deal.known(split, self.splits)
        n = self.size if n is None else n
        shares = {"valid": self.valid_share, "test": self.test_share}
        share = shares.get(split, 1.0 - sum(shares.values()))
        tasks: list[Task] = []
        for task in self._distinct(max(1000, int(TRIES * n / share))):
            if len(tasks) == n:
                break
            if deal.deal(task.meta["question"], shares) == split:
                tasks.append(task)
        if len(tasks) < n:
            hint = "ask for fewer, or widen its config"
            found = f"{self.name} with this config has about {len(tasks)} different tasks in {split!r}, not {n}"
            raise UserError(found, field="gym.size", hint=hint)
        return tasks

    def _distinct(self, tries: int) -> Iterator[Task]:
        """Tasks of different questions, among the first `tries` entries."""
        dataset, seen = self._dataset(tries), set()
        for index in range(tries):
            entry = dataset[index]
            key = deal.identity(entry["question"])
            if key not in seen:
                seen.add(key)
                yield self._task(entry, index)

    def _task(self, entry: dict[str, Any], index: int) -> Task:
        values = {**entry["metadata"], "question": entry["question"]}
        unknown = deal.holes(self.prompt) - set(values)
        if unknown:
            there = ", ".join(sorted(values))
            raise UserError(f"{self.name} has no {sorted(unknown)[0]!r} (it has: {there})", field="gym.prompt")
        where = {"name": self.name, "config": self.config, "seed": self.seed, "index": index}
        return Task(
            f"{self.name}/{self.seed}/{index}",
            deal.fill(self.prompt, values),
            str(entry["answer"]),
            {"question": entry["question"], "gym": where},
        )

    def _dataset(self, size: int) -> Any:
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ModuleNotFoundError as err:
            raise missing_extra("reasoning_gym", "gym", "the task source 'gym'") from err
        if self.name not in DATASETS:
            raise UserError(f"reasoning-gym has no task {self.name!r}{near(self.name, DATASETS)}", field="gym.name")
        try:
            return reasoning_gym.create_dataset(self.name, seed=self.seed, size=size, **self.config)
        except (AssertionError, TypeError, ValueError) as err:  # how its configs refuse
            raise UserError(f"reasoning-gym refuses it: {err}", field="gym.config") from err
