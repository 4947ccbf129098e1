"""A user's tasks: JSONL rows with `prompt` (text or messages) and `answer`; further columns go to `Task.meta`.

A held-out split is a separate file, or a share of the training file chosen by a hash of the prompt. A prompt that is
in two files is an error naming both.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from ladder.contract.rollouts import Task
from ladder.tasks import split as splitting
from ladder.tasks.rows import TaskRow, read

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Jsonl:
    """The task source. train, valid, test: JSONL files. valid_share, test_share: shares of the training file, for
    splits without a file. prompt, answer: names of the columns. A column `id`, if present, is the task's id.
    """

    train: str
    valid: str | None = None
    test: str | None = None
    valid_share: float = 0.0
    test_share: float = 0.0
    prompt: str = "prompt"
    answer: str = "answer"

    @model_validator(mode="after")
    def _check_options(self) -> Jsonl:
        splitting.check_shares(valid_share=self.valid_share, test_share=self.test_share)
        for name, file, share in (("valid", self.valid, self.valid_share), ("test", self.test, self.test_share)):
            if file and share:
                raise ValueError(f"{name} and {name}_share are both set: a split is a file or a share")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        held_out = {"valid": self.valid or self.valid_share, "test": self.test or self.test_share}
        return ("train", *(name for name, source in held_out.items() if source))

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        """The first n tasks of a split, in file order (None: all). Raises UserError."""
        splitting.known(split, self.splits)
        return splitting.first(self._tasks_by_split[split], n, split)

    @cached_property
    def _tasks_by_split(self) -> dict[str, list[Task]]:
        """The tasks of every split. Raises UserError for a prompt that is in two files."""
        files = {"test": self.test, "valid": self.valid, "train": self.train}
        shares = {"valid": self.valid_share, "test": self.test_share}
        tasks: dict[str, list[Task]] = {name: [] for name in files}
        row_of: dict[str, TaskRow] = {}
        for name, file in files.items():
            if file is None:
                continue
            for row in read(file):
                task = self._task(row)
                first_row = row_of.setdefault(splitting.identity(task.prompt), row)
                if first_row.file != row.file:
                    message = f"is in {first_row.file}:{first_row.line} too"
                    raise row.error(self.prompt, message, "remove one of the two rows")
                tasks[name if name != "train" else splitting.deal(task.prompt, shares)].append(task)
        return tasks

    def _task(self, row: TaskRow) -> Task:
        prompt = row.get(self.prompt)
        if isinstance(prompt, str):
            row.text(self.prompt)
        else:
            problem = splitting.check_messages(prompt)
            if problem:
                raise row.error(self.prompt, problem)
        answer = row.get(self.answer)
        meta = {k: v for k, v in row.fields.items() if k not in (self.prompt, self.answer)}
        return Task(str(meta.get("id", f"{row.file}:{row.line}")), prompt, answer, meta)
