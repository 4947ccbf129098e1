"""The user's own tasks: JSONL rows with `prompt` (text or messages) and `answer`; further columns go to `Task.meta`.

Held-out splits come from files of their own, or as shares of the training file by a hash of the prompt. A prompt that
is in two files is an error naming both.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from ladder.contract.rollouts import Task
from ladder.tasks import split as deal
from ladder.tasks.rows import Row, read

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Jsonl:
    """train, valid, test: files. valid_share, test_share: of the training file, where there is no file for that split.
    prompt, answer: the columns' names. A column `id` names the task.
    """

    train: str
    valid: str | None = None
    test: str | None = None
    valid_share: float = 0.0
    test_share: float = 0.0
    prompt: str = "prompt"
    answer: str = "answer"

    @model_validator(mode="after")
    def _possible(self) -> Jsonl:
        deal.check_shares(valid_share=self.valid_share, test_share=self.test_share)
        for name, file, share in (("valid", self.valid, self.valid_share), ("test", self.test, self.test_share)):
            if file and share:
                raise ValueError(f"{name} and {name}_share are both given: it is a file or a share")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        held = {"valid": self.valid or self.valid_share, "test": self.test or self.test_share}
        return ("train", *(name for name, given in held.items() if given))

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        deal.known(split, self.splits)
        return deal.first(self._dealt[split], n, split)

    @cached_property
    def _dealt(self) -> dict[str, list[Task]]:
        """Every split's tasks, checked to be disjoint."""
        files = {"test": self.test, "valid": self.valid, "train": self.train}
        shares = {"valid": self.valid_share, "test": self.test_share}
        dealt: dict[str, list[Task]] = {name: [] for name in files}
        seen: dict[str, Row] = {}
        for name, file in files.items():
            if file is None:
                continue
            for row in read(file):
                task = self._task(row)
                before = seen.setdefault(deal.identity(task.prompt), row)
                if before.file != row.file:
                    raise row.error(self.prompt, f"is in {before.file}:{before.line} too", "take one of them out")
                dealt[name if name != "train" else deal.deal(task.prompt, shares)].append(task)
        return dealt

    def _task(self, row: Row) -> Task:
        prompt = row.get(self.prompt)
        if isinstance(prompt, str):
            row.text(self.prompt)
        else:
            wrong = deal.check_messages(prompt)
            if wrong:
                raise row.error(self.prompt, wrong)
        answer = row.get(self.answer)
        meta = {k: v for k, v in row.fields.items() if k not in (self.prompt, self.answer)}
        return Task(str(meta.get("id", f"{row.file}:{row.line}")), prompt, answer, meta)
