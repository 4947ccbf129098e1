"""Exact match: the answer equals the gold string after normalisation.

Normalisation of both sides: Unicode NFC, each run of whitespace to one space, both ends stripped; with `ignore_case`
case folding, with `ignore_punctuation` punctuation stripped at both ends. Left out: edit distance and containment,
because partial credit for a wrong answer rewards wrong answers.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ladder.contract.rollouts import Invalid, Outcome, Rollout, Score
from ladder.rewards.text import CLOSE, OPEN, after_thinking


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Exact:
    """1 if the answer equals `task.answer`, otherwise 0; Invalid if the task has no gold answer.

    take: which part of the text after the thinking is the answer: "all", its last "line", or its last "token"
    (separated by whitespace). marker: the answer follows this string, which must occur exactly once ("": no marker).
    finished: a completion cut off at the length limit is wrong. open, close: the thinking tags.
    """

    take: Literal["all", "line", "token"] = "all"
    marker: str = ""
    ignore_case: bool = False
    ignore_punctuation: bool = False
    finished: bool = True
    open: str = OPEN
    close: str = CLOSE
    name: str = "exact"

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        return [self._judge(r) for r in group]

    def _judge(self, rollout: Rollout) -> Outcome:
        if rollout.task.answer is None:
            return Invalid(f"{self.name}: the task {rollout.task.id!r} has no answer")
        truncated = self.finished and rollout.stop == "length"
        answer = None if truncated else self._extract(rollout.text)
        right = float(answer is not None and self.normalise(answer) == self.normalise(str(rollout.task.answer)))
        return Score(right, {self.name: right})

    def _extract(self, text: str) -> str | None:
        """The answer in a completion; None where there is none."""
        answer = after_thinking(text, self.open, self.close)
        if answer is not None and self.marker:
            answer = answer.partition(self.marker)[2] if answer.count(self.marker) == 1 else None
        if answer is None or not answer.strip() or self.take == "all":
            return answer
        return answer.strip().splitlines()[-1] if self.take == "line" else answer.split()[-1]

    def normalise(self, text: str) -> str:
        """The form in which answer and gold string are compared."""
        text = " ".join(unicodedata.normalize("NFC", text).split())
        if self.ignore_case:
            text = text.casefold()
        return text.strip(string.punctuation + string.whitespace) if self.ignore_punctuation else text
