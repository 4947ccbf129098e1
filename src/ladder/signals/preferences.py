"""The signal of preferences: pairs, distributed over steps, with the column "ref_logps" of both sides if there is a
reference (DPO, IPO, hinge). See `reference.py` for how the column is computed, `unpaired.py` for single answers with a
label (KTO).

Left out: preferences collected during training (online DPO).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ladder.base.errors import UserError
from ladder.contract.training import Pair, Reference, Sample, Unit, Weights
from ladder.packing.pack import prompt_length
from ladder.signals.examples import Examples
from ladder.signals.reference import check_unfilled, filled, kept, place_of


@dataclass
class Preferences:
    """The signal over pairs (`contract.training.Signal`). reference: None if the loss reads none (SimPO, ORPO), or if
    the pairs already have the column. Raises UserError for a unit that is not a pair, for equal sides and for sides
    with different prompts."""

    examples: Examples
    reference: Reference | None = None

    def __post_init__(self) -> None:
        check_pairs(self.examples.units)
        if self.reference is not None:
            check_unfilled(self.examples.units)

    def keep(self, directory: Path, model: str) -> None:
        """Computes the reference log-probabilities of all pairs once, or reads them from a file in `directory`; the
        reference is released.

        model: identifies the reference (the hash of its weights).
        """
        assert self.reference is not None, "there is no reference"
        self.examples.units = kept(self.examples.units, self.reference, directory, model)
        self.reference = None

    def batches(self) -> Iterator[list[Unit]]:
        for units in self.examples.batches():
            yield filled(units, self.reference) if self.reference is not None else units

    def observe(self, weights: Callable[[], Weights], version: int) -> None:
        """Pairs do not depend on the policy."""

    def metrics(self) -> dict[str, float]:
        return self.examples.metrics()

    def state(self) -> dict[str, Any]:
        return self.examples.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.examples.restore(state)


def at_end(unit: Unit, filler: int = 0) -> Unit:
    """The unit prepared for a scalar head, which is read once, at the unit's last token.

    The model's output at position t-1 belongs to the masked token t, so one token (`filler`) is appended and only that
    one is in the mask. The model never reads it: any token id gives the same score.
    """
    if isinstance(unit, Pair):
        chosen, rejected = at_end(unit.chosen, filler), at_end(unit.rejected, filler)
        assert isinstance(chosen, Sample) and isinstance(rejected, Sample)
        return replace(unit, chosen=chosen, rejected=rejected)
    mask = torch.zeros(len(unit.tokens) + 1, dtype=torch.bool)
    mask[-1] = True
    return Sample(torch.cat([unit.tokens, torch.tensor([filler])]), mask, {}, unit.meta)


def check_pairs(units: Sequence[Unit]) -> list[Pair]:
    """The units as pairs. Raises UserError naming the first unit that is not a pair, or whose sides are equal or have
    different prompts."""
    pairs = []
    for i, unit in enumerate(units):
        if not isinstance(unit, Pair):
            raise UserError(f"{place_of(unit, i)} is not a pair", field="data", hint="give chosen and rejected")
        chosen, rejected = unit.chosen, unit.rejected
        if torch.equal(chosen.tokens, rejected.tokens):
            hint = "leave the pair out (truncating long answers can make them equal, too)"
            raise UserError(f"{place_of(unit, i)}: chosen and rejected are the same", field="data", hint=hint)
        n = prompt_length(chosen)
        if prompt_length(rejected) != n or not torch.equal(chosen.tokens[:n], rejected.tokens[:n]):
            raise UserError(f"{place_of(unit, i)}: chosen and rejected answer different prompts", field="data")
        pairs.append(unit)
    return pairs
