"""Task sources built from a recipe, and what their worlds define: named rewards, filters, figures, a tokenizer."""

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
"""Filters of rollouts for any task."""


def tasks_of(spec: Spec | None, split: str, field: str) -> TaskSource:
    """The task source of a stage or an evaluation set, with its split checked. field: of the stage or set. Raises
    UserError."""
    source = tasks(spec, f"{field}.task")
    known(split, source.splits, f"{field}.split")
    return source


def tasks(spec: Spec | None, field: str) -> TaskSource:
    """Builds a task source. Raises UserError."""
    return task_sources.build(_single(spec, field), field)


def check(spec: Spec | None, split: str, field: str) -> None:
    """Checks a task without executing a user's code. Raises UserError."""
    if task_sources.is_foreign(_single(spec, f"{field}.task")):
        located(spec, f"{field}.task")
    else:
        tasks_of(spec, split, field)


def _single(spec: Spec | None, field: str) -> str | dict[str, Any]:
    """The specification, if it is of one task source. Raises UserError."""
    if spec is None:
        raise UserError("no task is given", field=field, hint="set it in the stage or at the top of the recipe")
    if isinstance(spec, list):
        raise UserError("is a list, but must be one task source", field=field)
    return spec


def world(spec: Spec | None, field: str = "task") -> World | None:
    """The world that a task belongs to; None if it has none. A user's class is imported."""
    return None if spec is None else task_sources.world_of(tasks(spec, field))


def named_rewards() -> dict[str, Judge]:
    """The rewards of the built-in worlds, which a recipe may name beside the kinds of reward."""
    return {name: reward for task_world in task_sources.worlds() for name, reward in task_world.rewards.items()}


@dataclass(frozen=True, slots=True)
class OwnReward:
    """A named reward of a user's world. The user's class is not imported before the reward starts."""

    task: Any
    name: str
    field: str

    def start(self) -> None:
        self._judge()

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        return self._judge()(group)

    def _judge(self) -> Judge:
        task_world = world(self.task)
        rewards = {} if task_world is None else task_world.rewards
        if self.name not in rewards:
            raise UserError(f"no reward is called {self.name!r}{near(self.name, list(rewards))}", field=self.field)
        return rewards[self.name]


def stats(spec: Spec | None) -> Stats | None:
    """The function that computes the figures of a task's world for rollouts; None if the world has none."""
    figures = _figures(spec)
    return None if figures is None else lambda rollouts: figures([r.text for r in rollouts])


def text_stats(spec: Spec | None, texts: Sequence[str]) -> dict[str, float]:
    """The world's figures of answers given as texts; empty if the world has none."""
    figures = _figures(spec)
    return {} if figures is None else figures(texts)


def _figures(spec: Spec | None) -> Figures | None:
    task_world = world(spec)
    return None if task_world is None else task_world.figures


def belongs(task: Task, spec: Spec) -> bool:
    """Whether a task could come from the given source; True if its world does not define this."""
    source = tasks(spec, "eval.sets")
    task_world = task_sources.world_of(source)
    return True if task_world is None or task_world.holds is None else task_world.holds(source, task)


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
    """Filters by name: the general ones and those of a task's world. Raises UserError. A user's world is not imported
    here: any name is accepted, and checked when the filter is called."""
    if task_sources.is_foreign(task):
        return {name: partial(_foreign_filter, task, name, field) for name in names}
    known_filters = _known_filters(task)
    return {name: _filter(name, known_filters, field) for name in names}


def _known_filters(task: Spec | None) -> dict[str, Filter]:
    """The general filters and those of a task's world."""
    task_world = world(task)
    return FILTERS | dict(task_world.filters if task_world is not None else {})


def _filter(name: str, known_filters: dict[str, Filter], field: str) -> Filter:
    if name not in known_filters:
        raise UserError(f"no filter is called {name!r}{near(name, list(known_filters))}", field=field)
    return known_filters[name]


def _foreign_filter(task: Spec | None, name: str, field: str, rollout: Rollout) -> bool:
    """A filter of a user's world, which is imported here."""
    return _filter(name, _known_filters(task), field)(rollout)
