"""Task sources, figures and filters built from a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ladder import tasks as task_sources
from ladder.base.config import near
from ladder.base.errors import UserError
from ladder.contract.rollouts import Rollout, Task
from ladder.pipeline.recipe import Spec
from ladder.tasks import TaskSource
from ladder.tasks.chain import answers
from ladder.tasks.chain.source import Chain
from ladder.tasks.split import known

Stats = Callable[[Sequence[Rollout]], dict[str, float]]


def is_chain(spec: Spec | None) -> bool:
    return spec == "chain" or (isinstance(spec, dict) and ("chain" in spec or spec.get("kind") == "chain"))


def tasks_of(spec: Spec | None, split: str, field: str) -> TaskSource:
    """Where a stage's or a set's tasks come from. field: of the two together. Raises UserError."""
    source = tasks(spec, f"{field}.task")
    known(split, source.splits, f"{field}.split")
    return source


def tasks(spec: Spec | None, field: str) -> TaskSource:
    if spec is None:
        raise UserError("no task is given", field=field, hint="set it in the stage or at the top of the recipe")
    if isinstance(spec, list):
        raise UserError("is a list; one task source is wanted", field=field)
    return task_sources.build(spec, field)


def stats(spec: Spec | None) -> Stats | None:
    """Figures a world knows of its answers."""
    return answers.stats if is_chain(spec) else None


def text_stats(spec: Spec | None, texts: Sequence[str]) -> dict[str, float]:
    """The same of bare texts; nothing where the world knows none."""
    return answers.text_stats(texts) if is_chain(spec) else {}


def belongs(task: Task, spec: Spec) -> bool:
    """Whether a task is such as an evaluation set holds: in the built-in world, of as many steps."""
    if not is_chain(spec):
        return True
    source = tasks(spec, "eval.sets")
    assert isinstance(source, Chain)
    return source.steps[0] <= task.meta.get("steps", -1) <= source.steps[1]


def files(spec: Any) -> list[Path]:
    """The files that a task source or a reward reads: data, and `file.py` of a function `file.py:name`."""
    if isinstance(spec, dict | list):
        values = spec.values() if isinstance(spec, dict) else spec
        return [path for value in values for path in files(value)]
    if not isinstance(spec, str):
        return []
    path = spec.rpartition(":")[0] if ".py:" in spec else spec
    return [Path(path)] if path.endswith((".jsonl", ".py")) else []


FILTERS: dict[str, Callable[[Rollout], bool]] = {
    "clean": lambda r: answers.is_clean(r.text),
    "finished": lambda r: r.stop != "length",
    "offhand": lambda r: not answers.is_worked(r.text),
}


def filters(names: Sequence[str], field: str) -> dict[str, Callable[[Rollout], bool]]:
    for name in names:
        if name not in FILTERS:
            raise UserError(f"no filter is called {name!r}{near(name, list(FILTERS))}", field=field)
    return {name: FILTERS[name] for name in names}
