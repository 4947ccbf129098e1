"""Format reward: the completion is `<thinking>working</thinking>answer`, each tag once, in order, no part empty.

DeepSeek-R1's format reward (arXiv:2501.12948, section 2.2.2). The content of the two parts is not judged.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ladder.contract.rollouts import Outcome, Rollout, Score
from ladder.rewards.text import CLOSE, OPEN, split_thinking


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Format:
    """1 if the completion is well-formed, otherwise 0.

    open, close: the thinking tags. opened: the prompt ends with the opening tag, so the completion must not contain
    one. finished: a completion cut off at the length limit is not well-formed. min_working: least characters of
    working.
    """

    open: str = OPEN
    close: str = CLOSE
    opened: bool = False
    finished: bool = True
    min_working: int = 1
    name: str = "format"

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        values = [float(self.well_formed(r)) for r in group]
        return [Score(v, {self.name: v}) for v in values]

    def well_formed(self, rollout: Rollout) -> bool:
        """Whether the completion has the format."""
        if self.finished and rollout.stop == "length":
            return False
        parts = split_thinking(rollout.text, self.open, self.close, self.opened)
        return parts is not None and len(parts[0]) >= max(self.min_working, 1) and bool(parts[1])
