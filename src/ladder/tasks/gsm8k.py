"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): grade-school word problems, as tasks and as worked examples.

A row is {"question": ..., "answer": "working\\n#### 18"}; the working may contain calculator annotations <<48/2=24>>,
which are removed unless `annotations` is set. The gold answer is the number after `####`, without thousands
separators. The split "valid" is a share of the training file chosen by a hash of the question; a question that is in
both the training and the test file is an error. Left out: downloading the data.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from ladder.base.errors import UserError
from ladder.contract.rollouts import Message, Task
from ladder.tasks import split as splitting
from ladder.tasks.rows import TaskRow, read

_ANNOTATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class GSM8K:
    """The task source. train, test: JSONL files. valid_share: share of the training file that is the split "valid".

    prompt: template, text or messages, with {question}. completion: template of a worked example's completion, with
    {working} and {answer}. annotations: keep calculator annotations such as <<48/2=24>>.
    """

    train: str
    test: str | None = None
    valid_share: float = 0.0
    prompt: str | list[Message] = "Question: {question}\nAnswer:\n"
    completion: str = "<thinking>{working}</thinking>{answer}"
    annotations: bool = False

    @model_validator(mode="after")
    def _check_options(self) -> GSM8K:
        splitting.check_shares(valid_share=self.valid_share)
        if "question" not in splitting.holes(self.prompt):
            raise ValueError("the prompt template must contain {question}")
        if "answer" not in splitting.holes(self.completion):
            raise ValueError("the completion template must contain {answer}")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", *(["valid"] if self.valid_share else []), *(["test"] if self.test else []))

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        """Tasks whose answer is the gold number as text, e.g. "1800"; meta has `question` and `working`."""
        return splitting.first(self._split_tasks(split), n, split)

    def examples(self, split: str, n: int | None = None) -> list[dict[str, Any]]:
        """Rows {"prompt", "completion"} for supervised fine-tuning, text or messages as the prompt template is."""
        return [self._example(t) for t in self.tasks(split, n)]

    def _example(self, task: Task) -> dict[str, Any]:
        text = splitting.fill(self.completion, {"working": task.meta["working"], "answer": task.answer})
        is_chat = isinstance(self.prompt, list)
        return {"prompt": task.prompt, "completion": [{"role": "assistant", "content": text}] if is_chat else text}

    def _split_tasks(self, split: str) -> list[Task]:
        splitting.known(split, self.splits)
        if split == "test":
            return self._test_tasks
        shares = {"valid": self.valid_share}
        return [t for t in self._train_tasks if splitting.deal(t.meta["question"], shares) == split]

    @cached_property
    def _test_tasks(self) -> list[Task]:
        return [self._task(row, "test") for row in read(str(self.test))]

    @cached_property
    def _train_tasks(self) -> list[Task]:
        """The tasks of the training file, "valid" included. Raises UserError for a question of the test file."""
        rows = read(self.train)
        test_questions = {splitting.identity(t.meta["question"]) for t in self._test_tasks} if self.test else set()
        tasks = [self._task(row, "train") for row in rows]
        for row, task in zip(rows, tasks, strict=True):
            if splitting.identity(task.meta["question"]) in test_questions:
                hint = "remove it from one of the files"
                raise UserError(f"is in {self.test} too", file=row.file, line=row.line, field="question", hint=hint)
        return tasks

    def _task(self, row: TaskRow, name: str) -> Task:
        question, solution = row.text("question"), row.text("answer")
        working, separator, answer = solution.rpartition("####")
        answer = answer.strip().replace(",", "")
        if not separator or not answer:
            hint = 'end it with a line "#### 18"'
            raise UserError(
                "has no `####` with an answer after it", file=row.file, line=row.line, field="answer", hint=hint
            )
        working = working.strip() if self.annotations else _ANNOTATION.sub("", working).strip()
        prompt = splitting.fill(self.prompt, {"question": question.strip()})
        return Task(f"gsm8k/{name}/{row.line}", prompt, answer, {"question": question.strip(), "working": working})
