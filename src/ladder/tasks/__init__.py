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


def build(spec: str | Mapping[str, Any], field: str = "tasks") -> TaskSource:
    """The task source that a recipe describes. field: the recipe field of `spec`, for messages.

    Raises UserError on an unknown kind, key or type.
    """
    from ladder.base.spec import kind_of, validate

    kinds = _kinds()
    kind, options = kind_of(spec, kinds, "task source", field)
    return validate(kinds[kind], options, field)
