"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): school word problems, as tasks and as worked examples.

A row is {"question": ..., "answer": "working\\n#### 18"}; the working may hold calculator annotations <<48/2=24>>,
which are taken out unless asked for. The gold answer is the number after `####`, without thousands separators.
"valid" is a share of the training file chosen by a hash of the question; a question of the test file that is in the
training file as well is an error. Left out: fetching the data.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from ladder.base.errors import UserError
from ladder.contract.rollouts import Message, Task
from ladder.tasks import split as deal
from ladder.tasks.rows import Row, read

_ANNOTATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class GSM8K:
    """train, test: JSONL files. valid_share: of the training file. prompt: text or messages with {question}.
    completion: what a worked example answers, with {working} and {answer}. annotations: keep <<48/2=24>>.
    """

    train: str
    test: str | None = None
    valid_share: float = 0.0
    prompt: str | list[Message] = "Question: {question}\nAnswer:\n"
    completion: str = "<thinking>{working}</thinking>{answer}"
    annotations: bool = False

    @model_validator(mode="after")
    def _possible(self) -> GSM8K:
        deal.check_shares(valid_share=self.valid_share)
        if "question" not in deal.holes(self.prompt):
            raise ValueError("the prompt template must hold {question}")
        if "answer" not in deal.holes(self.completion):
            raise ValueError("the completion template must hold {answer}")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", *(["valid"] if self.valid_share else []), *(["test"] if self.test else []))

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        """Tasks with the gold number as text, e.g. "1800"; meta holds the question and its working."""
        return deal.first(self._tasks(split), n, split)

    def examples(self, split: str, n: int | None = None) -> list[dict[str, Any]]:
        """Rows {"prompt", "completion"} for imitation, both text or both messages, as the prompt template is."""
        return [self._example(t) for t in self.tasks(split, n)]

    def _example(self, task: Task) -> dict[str, Any]:
        text = deal.fill(self.completion, {"working": task.meta["working"], "answer": task.answer})
        chat = isinstance(self.prompt, list)
        return {"prompt": task.prompt, "completion": [{"role": "assistant", "content": text}] if chat else text}

    def _tasks(self, split: str) -> list[Task]:
        deal.known(split, self.splits)
        if split == "test":
            return self._test
        shares = {"valid": self.valid_share}
        return [t for t in self._train if deal.deal(t.meta["question"], shares) == split]

    @cached_property
    def _test(self) -> list[Task]:
        return [self._task(row, "test") for row in read(str(self.test))]

    @cached_property
    def _train(self) -> list[Task]:
        rows = read(self.train)
        held = {deal.identity(t.meta["question"]) for t in self._test} if self.test else set()
        tasks = [self._task(row, "train") for row in rows]
        for row, task in zip(rows, tasks, strict=True):
            if deal.identity(task.meta["question"]) in held:
                hint = "take it out of one of the files"
                raise UserError(f"is in {self.test} too", file=row.file, line=row.line, field="question", hint=hint)
        return tasks

    def _task(self, row: Row, name: str) -> Task:
        question, worked = row.text("question"), row.text("answer")
        working, found, answer = worked.rpartition("####")
        answer = answer.strip().replace(",", "")
        if not found or not answer:
            hint = 'end it with a line "#### 18"'
            raise UserError(
                "has no `####` with an answer after it", file=row.file, line=row.line, field="answer", hint=hint
            )
        working = working.strip() if self.annotations else _ANNOTATION.sub("", working).strip()
        prompt = deal.fill(self.prompt, {"question": question.strip()})
        return Task(f"gsm8k/{name}/{row.line}", prompt, answer, {"question": question.strip(), "working": working})
