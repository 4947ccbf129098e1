"""The type of an experiment: a claim, a recipe that every seed runs, and functions from its runs to a verdict.

The recipe is in `recipes/lab/` and also runs alone (`ladder run lab/NAME`). The experiment defines which figures are
read from a finished run, the effect over seeds with its interval, a drawing and one sentence.
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
"""The figures read from one seed's run, as JSON data."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of an experiment. holds: whether the claim holds here. effect: its size. sentence: the result with its
    numbers. more: name -> further effect. table: rows of text, the first of them the column heads."""

    holds: bool
    effect: Effect
    sentence: str
    more: dict[str, Effect] = field(default_factory=dict)
    table: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment. claim: with its source. measure: reads the figures of one seed's run directory. verdict: from the
    figures of all seeds. draw: draws them. size: of the figure, in inches."""

    name: str
    claim: str
    measure: Callable[[Path], Measured]
    verdict: Callable[[Sequence[Measured]], Verdict]
    draw: Callable[[Sequence[Measured], Figure], None]
    size: tuple[float, float] = (8.0, 3.2)

    @property
    def recipe(self) -> str:
        """The name of the experiment's recipe."""
        return f"lab/{self.name}"
