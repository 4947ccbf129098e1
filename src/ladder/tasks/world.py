"""A world: what a family of tasks brings beside its tasks.

General code (stages, reports, the console) names no world: it reads from this object which rewards and filters the
tasks come with, which figures their answers have, and which tokenizer a model made from a preset gets. A task source
says which world it belongs to by an attribute `world`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from ladder.contract.rollouts import Outcome, Rollout, Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Judge = Callable[[Sequence[Rollout]], list[Outcome]]
Figures = Callable[[Sequence[str]], dict[str, float]]
"""Figures of the texts of some answers."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The texts of a tokenizer's special tokens."""

    bos: str
    eos: str
    pad: str


@dataclass(frozen=True, slots=True)
class World:
    """rewards: by the names that recipes use. filters: of rollouts, by name. figures: of answers, logged with a step's
    other figures. tokenizer, special: for a model made from a preset, which has none. holds: whether a task is such as
    a task source of this world deals."""

    name: str
    rewards: Mapping[str, Judge] = field(default_factory=dict)
    filters: Mapping[str, Callable[[Rollout], bool]] = field(default_factory=dict)
    figures: Figures | None = None
    tokenizer: Callable[[], Tokenizer] | None = None
    special: SpecialTokens | None = None
    holds: Callable[[Any, Task], bool] | None = None


@runtime_checkable
class OfWorld(Protocol):
    """A task source that belongs to a world."""

    world: ClassVar[World]
