"""Is the answer the gold string, after a normalisation that is all spelt out here?

Both sides are Unicode NFC, whitespace runs are one space, ends are stripped; `ignore_case` and `ignore_punctuation`
(at the ends only) go further when asked. Left out: edit distance and containment; partial credit for a wrong answer
is a reward for wrong answers.
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
    """1 where the answer equals `task.answer`, 0 where not; Invalid where there is no gold answer.

    take: "all" that follows the thinking, its last "line", or its last "token" (between whitespace). marker: the
    answer is what follows this string, which must occur exactly once ("" for none). finished: an answer cut off at
    the length limit is wrong.
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
        cut = self.finished and rollout.stop == "length"
        said = None if cut else self._said(rollout.text)
        right = float(said is not None and self.normalise(said) == self.normalise(str(rollout.task.answer)))
        return Score(right, {self.name: right})

    def _said(self, text: str) -> str | None:
        said = after_thinking(text, self.open, self.close)
        if said is not None and self.marker:
            said = said.partition(self.marker)[2] if said.count(self.marker) == 1 else None
        if said is None or not said.strip() or self.take == "all":
            return said
        return said.strip().splitlines()[-1] if self.take == "line" else said.split()[-1]

    def normalise(self, text: str) -> str:
        text = " ".join(unicodedata.normalize("NFC", text).split())
        if self.ignore_case:
            text = text.casefold()
        return text.strip(string.punctuation + string.whitespace) if self.ignore_punctuation else text
