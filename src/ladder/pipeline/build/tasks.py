"""Task sources built from a recipe, and what their worlds bring: rewards by name, filters, figures, a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ladder import tasks as task_sources
from ladder.base.config import near
from ladder.base.errors import UserError
from ladder.contract.rollouts import Outcome, Rollout, Task
from ladder.pipeline.build.named import located, sources
from ladder.pipeline.recipe import Spec
from ladder.tasks import TaskSource
from ladder.tasks.split import known
from ladder.tasks.world import Figures, Judge, World

Stats = Callable[[Sequence[Rollout]], dict[str, float]]
Filter = Callable[[Rollout], bool]

FILTERS: dict[str, Filter] = {"finished": lambda r: r.stop != "length"}
"""Filters of rollouts that fit any task."""


def tasks_of(spec: Spec | None, split: str, field: str) -> TaskSource:
    """Where a stage's or a set's tasks come from. field: of the two together. Raises UserError."""
    source = tasks(spec, f"{field}.task")
    known(split, source.splits, f"{field}.split")
    return source


def tasks(spec: Spec | None, field: str) -> TaskSource:
    """The source that a spec describes. Raises UserError."""
    return task_sources.build(_one(spec, field), field)


def check(spec: Spec | None, split: str, field: str) -> None:
    """Raises UserError for what can be known to be wrong with a task without executing a user's code."""
    if task_sources.is_foreign(_one(spec, f"{field}.task")):
        located(spec, f"{field}.task")
    else:
        tasks_of(spec, split, field)


def _one(spec: Spec | None, field: str) -> str | dict[str, Any]:
    if spec is None:
        raise UserError("no task is given", field=field, hint="set it in the stage or at the top of the recipe")
    if isinstance(spec, list):
        raise UserError("is a list; one task source is wanted", field=field)
    return spec


def world(spec: Spec | None, field: str = "task") -> World | None:
    """The world that a task belongs to; None where it brings nothing. A class of the user's is imported for it."""
    return None if spec is None else task_sources.world_of(tasks(spec, field))


def named_rewards() -> dict[str, Judge]:
    """Rewards that a recipe may name beside the kinds of reward: those that the built-in worlds bring."""
    return {name: reward for one in task_sources.worlds() for name, reward in one.rewards.items()}


@dataclass(frozen=True, slots=True)
class OwnReward:
    """A reward named by a world of the user's, whose class is imported when the reward starts, and not before."""

    task: Any
    name: str
    field: str

    def start(self) -> None:
        self._judge()

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        return self._judge()(group)

    def _judge(self) -> Judge:
        one = world(self.task)
        rewards = {} if one is None else one.rewards
        if self.name not in rewards:
            raise UserError(f"no reward is called {self.name!r}{near(self.name, list(rewards))}", field=self.field)
        return rewards[self.name]


def stats(spec: Spec | None) -> Stats | None:
    """Figures that a world knows of rollouts."""
    figures = _figures(spec)
    return None if figures is None else lambda rollouts: figures([r.text for r in rollouts])


def text_stats(spec: Spec | None, texts: Sequence[str]) -> dict[str, float]:
    """The same of bare texts; nothing where the world knows none."""
    figures = _figures(spec)
    return {} if figures is None else figures(texts)


def _figures(spec: Spec | None) -> Figures | None:
    one = world(spec)
    return None if one is None else one.figures


def belongs(task: Task, spec: Spec) -> bool:
    """Whether a task is such as a spec's source deals; True where its world cannot tell."""
    source = tasks(spec, "eval.sets")
    one = task_sources.world_of(source)
    return True if one is None or one.holds is None else one.holds(source, task)


def files(spec: Any) -> list[Path]:
    """The files that a task source or a reward reads: data, and `file.py` of a function `file.py:name`."""
    if isinstance(spec, dict | list):
        values = spec.values() if isinstance(spec, dict) else spec
        own = sources(spec, "task") if task_sources.is_foreign(spec) else []
        return list(dict.fromkeys([*own, *(path for value in values for path in files(value))]))
    if not isinstance(spec, str):
        return []
    path = spec.rpartition(":")[0] if ".py:" in spec else spec
    return [Path(path)] if path.endswith((".jsonl", ".py")) else []


def filters(names: Sequence[str], task: Spec | None, field: str) -> dict[str, Filter]:
    """Filters by name: the general ones and those of a task's world. Raises UserError. Of a world of the user's, which
    is not imported here, any name is taken."""
    if task_sources.is_foreign(task):
        return {name: partial(_foreign_filter, task, name, field) for name in names}
    one = world(task)
    known_filters = FILTERS | dict(one.filters if one is not None else {})
    return {name: _filter(name, known_filters, field) for name in names}


def _filter(name: str, known_filters: dict[str, Filter], field: str) -> Filter:
    if name not in known_filters:
        raise UserError(f"no filter is called {name!r}{near(name, list(known_filters))}", field=field)
    return known_filters[name]


def _foreign_filter(task: Spec | None, name: str, field: str, rollout: Rollout) -> bool:
    one = world(task)
    return _filter(name, FILTERS | dict(one.filters if one is not None else {}), field)(rollout)
