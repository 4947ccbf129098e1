"""Tasks of any reasoning-gym data set (Stojanovski et al. 2025, arXiv:2505.24760), scored by its own `score_answer`.

In reasoning-gym, entry i of a data set is a function of (seed + i), so the entries of neighbouring seeds overlap, and
a small problem space (sums of two digits) repeats under any seed. Splits are therefore assigned by a hash of the
question, and each question occurs once. The matching reward is `{gym: {}}` (`ladder.rewards.gym`), which generates the
entry again from `meta["gym"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Any

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from ladder.base.config import near
from ladder.base.errors import UserError, missing_extra
from ladder.contract.rollouts import Message, Task
from ladder.tasks import split as splitting

TRIES = 40
"""Entries generated per requested task before the problem space is reported as too small."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class GymTasks:
    """The task source. name: of the data set in reasoning-gym. config: its options. size: tasks of a split if no number
    is requested. valid_share, test_share: shares of all possible questions. prompt: template, text or messages,
    with {question} or fields of the entry's metadata (such as {expression} for chain_sum).
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    size: int = 1000
    valid_share: float = 0.1
    test_share: float = 0.1
    prompt: str | list[Message] = "{question}"

    @model_validator(mode="after")
    def _check_options(self) -> GymTasks:
        splitting.check_shares(valid_share=self.valid_share, test_share=self.test_share)
        if not splitting.holes(self.prompt):
            raise ValueError("the prompt template must contain {question} or a field of the entry's metadata")
        if {"seed", "size"} & set(self.config):
            raise ValueError("seed and size do not belong in config: set them next to it")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        shares = {"valid": self.valid_share, "test": self.test_share}
        return ("train", *(name for name, share in shares.items() if share))

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        """n distinct tasks. Raises UserError for too small a problem space, and for an unknown name or config."""
        splitting.known(split, self.splits)
        n = self.size if n is None else n
        shares = {"valid": self.valid_share, "test": self.test_share}
        share = shares.get(split, 1.0 - sum(shares.values()))
        tasks: list[Task] = []
        for task in self._distinct(max(1000, int(TRIES * n / share))):
            if len(tasks) == n:
                break
            if splitting.deal(task.meta["question"], shares) == split:
                tasks.append(task)
        if len(tasks) < n:
            hint = "request fewer tasks, or choose a config with more possible questions"
            message = f"{self.name} with this config has about {len(tasks)} different tasks in {split!r}, not {n}"
            raise UserError(message, field="gym.size", hint=hint)
        return tasks

    def _distinct(self, tries: int) -> Iterator[Task]:
        """The tasks of distinct questions among the first `tries` entries."""
        dataset, seen_questions = self._dataset(tries), set()
        for index in range(tries):
            entry = dataset[index]
            question = splitting.identity(entry["question"])
            if question not in seen_questions:
                seen_questions.add(question)
                yield self._task(entry, index)

    def _task(self, entry: dict[str, Any], index: int) -> Task:
        values = {**entry["metadata"], "question": entry["question"]}
        unknown = splitting.holes(self.prompt) - set(values)
        if unknown:
            known = ", ".join(sorted(values))
            raise UserError(f"{self.name} has no {sorted(unknown)[0]!r} (it has: {known})", field="gym.prompt")
        entry_key = {"name": self.name, "config": self.config, "seed": self.seed, "index": index}
        return Task(
            f"{self.name}/{self.seed}/{index}",
            splitting.fill(self.prompt, values),
            str(entry["answer"]),
            {"question": entry["question"], "gym": entry_key},
        )

    def _dataset(self, size: int) -> Any:
        """The reasoning-gym data set of `size` entries. Raises UserError."""
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ModuleNotFoundError as err:
            raise missing_extra("reasoning_gym", "gym", "the task source 'gym'") from err
        if self.name not in DATASETS:
            raise UserError(f"reasoning-gym has no task {self.name!r}{near(self.name, DATASETS)}", field="gym.name")
        try:
            return reasoning_gym.create_dataset(self.name, seed=self.seed, size=size, **self.config)
        except (AssertionError, TypeError, ValueError) as err:  # raised by reasoning-gym's configs
            raise UserError(f"reasoning-gym rejects it: {err}", field="gym.config") from err
