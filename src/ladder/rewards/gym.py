"""A reasoning-gym task judged by its own `score_answer`, in a child process with a deadline.

The tasks come from `ladder.tasks.gym`, whose `meta["gym"]` names the entry; the child makes that entry again, so
nothing but JSON crosses. Many of its scorers give part marks (0.01 for any answer, or less for a long one that holds
the right string); `whole_marks` keeps only full ones.
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
class Gym:
    """The task's own score of the answer. places: where the answer may stand (all that follows the thinking: "bare").

    whole_marks: 1 for a score of 1, 0 for less. finished: an answer cut off at the length limit scores 0.
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
        """Starts the child now; raises UserError when reasoning-gym is not installed."""
        self.child.start(extra=("reasoning_gym", "gym", "the reward 'gym'"))

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        self.start()
        return [self._judge(r) for r in group]

    def _judge(self, rollout: Rollout) -> Outcome:
        if "gym" not in rollout.task.meta:
            return Invalid(f"{self.name}: the task {rollout.task.id!r} is not one of reasoning-gym")
        said = after_thinking(rollout.text, self.open, self.close)
        found = None if said is None else find(said, self.places)
        if found is None or (self.finished and rollout.stop == "length"):
            return Score(0.0, {self.name: 0.0})
        outcome = self.child.judge([replace(rollout, text=found)], self.name)[0]
        if isinstance(outcome, Score) and self.whole_marks:
            right = float(outcome.value >= 1.0)
            return Score(right, {self.name: right})
        return outcome
