"""Tasks: where prompts with gold answers come from. `build` makes a source from a recipe.

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
    """A deterministic source of tasks: the same calls give the same tasks in the same order, in every process."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits there are; no prompt is in two of them."""
        ...

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        """The first n tasks of a split (None: all of a finite one, `size` of a generator's).

        Raises UserError on an unknown split, or when there are fewer than n.
        """
        ...


def _kinds() -> dict[str, type]:
    from ladder.tasks.chain.source import Chain
    from ladder.tasks.gsm8k import GSM8K
    from ladder.tasks.gym import Gym
    from ladder.tasks.jsonl import Jsonl

    return {"chain": Chain, "gsm8k": GSM8K, "gym": Gym, "jsonl": Jsonl}


def build(spec: str | Mapping[str, Any], field: str = "tasks") -> TaskSource:
    """The source a recipe describes. Raises UserError on an unknown kind, key or type, and on a file it cannot read."""
    from ladder.base.spec import kind_of, validate

    kinds = _kinds()
    kind, options = kind_of(spec, kinds, "task source", field)
    return validate(kinds[kind], options, field)
