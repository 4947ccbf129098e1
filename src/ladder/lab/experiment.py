"""What an experiment of the lab is: a claim, a recipe that every seed runs, and how its figures become a verdict.

The recipe stands in `recipes/lab/`; it runs alone too (`ladder run lab/NAME`). An experiment adds what is read from a
finished run, how seeds become an effect with an interval, a figure, and one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladder.lab.stats import Effect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measured = dict[str, Any]
"""What one seed's run gave, JSON-able."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """holds: whether the claim holds here. effect: its size. sentence: what was found, in words with numbers.
    more: further effects, by name. table: rows for people, the first of them the head."""

    holds: bool
    effect: Effect
    sentence: str
    more: dict[str, Effect] = field(default_factory=dict)
    table: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Experiment:
    """claim: of the literature, with its source. measure: of one seed's run directory. size: of the figure, inches."""

    name: str
    claim: str
    measure: Callable[[Path], Measured]
    verdict: Callable[[Sequence[Measured]], Verdict]
    draw: Callable[[Sequence[Measured], Figure], None]
    size: tuple[float, float] = (8.0, 3.2)

    @property
    def recipe(self) -> str:
        return f"lab/{self.name}"
