"""reasoning-gym's own scorer, `score_answer` of the task's data set, in a child process with a deadline.

The tasks come from `ladder.tasks.gym`, whose `meta["gym"]` identifies the data-set entry; the child generates that
entry again, so only JSON crosses the pipe. Many scorers of reasoning-gym give partial credit (0.01 for any answer, or
a fraction for a long answer that contains the correct string); `whole_marks` reduces it to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ladder.contract.rollouts import Invalid, Outcome, Rollout, Score
from ladder.rewards.child import Child
from ladder.rewards.text import CLOSE, OPEN, Place, after_thinking, check_places, find


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class GymReward:
    """The score that the task's data set gives the answer; Invalid for a task that is not from reasoning-gym.

    places: where the answer is looked for, in order (`rewards.text.Place`). whole_marks: a score below 1 becomes 0.
    finished: a completion cut off at the length limit scores 0. deadline_s: seconds for one answer. memory_mb:
    data-segment limit of the child in MiB (0: none). open, close: the thinking tags.
    """

    places: tuple[Place, ...] = ("hash", "boxed", "tag", "bare")
    whole_marks: bool = True
    finished: bool = True
    deadline_s: float = 20.0
    memory_mb: int = 4096
    open: str = OPEN
    close: str = CLOSE
    name: str = "gym"

    def __post_init__(self) -> None:
        check_places(self.places)

    @cached_property
    def child(self) -> Child:
        return Child("ladder.tasks.gym_child:compute_score", self.deadline_s, memory_mb=self.memory_mb)

    def start(self) -> None:
        """Starts the child process. Raises UserError when reasoning-gym is not installed."""
        self.child.start(extra=("reasoning_gym", "gym", "the reward 'gym'"))

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        self.start()
        return [self._judge(r) for r in group]

    def _judge(self, rollout: Rollout) -> Outcome:
        if "gym" not in rollout.task.meta:
            return Invalid(f"{self.name}: the task {rollout.task.id!r} is not from reasoning-gym")
        final_text = after_thinking(rollout.text, self.open, self.close)
        answer = None if final_text is None else find(final_text, self.places)
        if answer is None or (self.finished and rollout.stop == "length"):
            return Score(0.0, {self.name: 0.0})
        outcome = self.child.judge([replace(rollout, text=answer)], self.name)[0]
        if isinstance(outcome, Score) and self.whole_marks:
            right = float(outcome.value >= 1.0)
            return Score(right, {self.name: right})
        return outcome
