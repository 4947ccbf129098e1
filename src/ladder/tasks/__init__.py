"""Task sources: prompts with gold answers, dealt to disjoint splits. `build` makes a source from a recipe.

tasks: {gsm8k: {train: gsm8k_train.jsonl, test: gsm8k_test.jsonl}}
tasks: {gym: {name: chain_sum, config: {min_terms: 2, max_terms: 3, min_digits: 1, max_digits: 2}}}
tasks: {jsonl: {train: mine.jsonl, valid_share: 0.1}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the worker child imports this package and must not load torch for it
    from ladder.contract.rollouts import Task
    from ladder.tasks.world import World


class TaskSource(Protocol):
    """A deterministic source of tasks: the same call returns the same tasks in the same order, in every process."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits; no prompt is in two of them."""
        ...

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        """The first n tasks of a split (None: all tasks of a finite source, `size` tasks of a generator).

        Raises UserError on an unknown split, or when the split has fewer than n tasks.
        """
        ...


def _kinds() -> dict[str, type]:
    from ladder.tasks.chain.source import Chain
    from ladder.tasks.gsm8k import GSM8K
    from ladder.tasks.gym import GymTasks
    from ladder.tasks.jsonl import Jsonl

    return {"chain": Chain, "gsm8k": GSM8K, "gym": GymTasks, "jsonl": Jsonl}


def worlds() -> list[World]:
    """The worlds of the built-in task sources."""
    from ladder.tasks.world import OfWorld

    return [kind.world for kind in _kinds().values() if isinstance(kind, OfWorld)]


def world_of(source: TaskSource) -> World | None:
    """The world that a task source belongs to; None for tasks that bring nothing else."""
    from ladder.tasks.world import OfWorld

    return source.world if isinstance(source, OfWorld) else None


def is_foreign(spec: Any) -> bool:
    """Whether a spec names a task source by an import path, so that building it executes a user's code."""
    if isinstance(spec, Mapping):
        spec = spec["kind"] if "kind" in spec else next(iter(spec)) if len(spec) == 1 else None
    return isinstance(spec, str) and ":" in spec


def build(spec: str | Mapping[str, Any], field: str = "tasks") -> TaskSource:
    """The task source that a recipe describes: of a built-in kind, or a user's class by import path (`file.py:Name`, a
    pydantic dataclass). field: the recipe field of `spec`, for messages.

    Raises UserError on an unknown kind, key or type, and on a path that cannot be imported.
    """
    from ladder.base.source import imported
    from ladder.base.spec import kind_of, validate

    kinds = _kinds()
    kind, options = kind_of(spec, kinds, "task source", field, by_path=True)
    return validate(kinds[kind] if kind in kinds else imported(kind), options, field)
