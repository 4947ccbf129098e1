"""Preferences as a signal: pairs, dealt to steps, with "ref_logps" of both sides when there is a reference (DPO, IPO,
hinge). See `reference.py` for how it is asked, `unpaired.py` for answers on their own (KTO).

Left out: preferences gathered while training (online DPO).
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
    """The signal over pairs (`types.Signal`). reference: None when the loss has none (SimPO, ORPO), or when the pairs
    have the column. Raises UserError for what is no pair, for equal sides and for prompts that differ."""

    examples: Examples
    reference: Reference | None = None

    def __post_init__(self) -> None:
        check_pairs(self.examples.units)
        if self.reference is not None:
            check_unfilled(self.examples.units)

    def keep(self, directory: Path, model: str) -> None:
        """Asks the reference once for all pairs, or reads what it said before; it is not needed any more.

        model: what tells this reference from all others (the hash of its weights).
        """
        assert self.reference is not None, "there is no reference to ask"
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
    """The unit asked for one number only, when its last token has been read: for a scalar head.

    A mask asks at the token *before* the one that it marks, so one more token is put behind, and marked. It is never
    read; which one it is (`filler`) does not matter.
    """
    if isinstance(unit, Pair):
        chosen, rejected = at_end(unit.chosen, filler), at_end(unit.rejected, filler)
        assert isinstance(chosen, Sample) and isinstance(rejected, Sample)
        return replace(unit, chosen=chosen, rejected=rejected)
    mask = torch.zeros(len(unit.tokens) + 1, dtype=torch.bool)
    mask[-1] = True
    return Sample(torch.cat([unit.tokens, torch.tensor([filler])]), mask, {}, unit.meta)


def check_pairs(units: Sequence[Unit]) -> list[Pair]:
    """Raises UserError naming the first unit that is no pair, or whose sides are equal or answer different prompts."""
    pairs = []
    for i, unit in enumerate(units):
        if not isinstance(unit, Pair):
            raise UserError(f"{place_of(unit, i)} is no pair", field="data", hint="give chosen and rejected")
        a, b = unit.chosen, unit.rejected
        if torch.equal(a.tokens, b.tokens):
            hint = "leave it out (cutting over-long answers can make them equal, too)"
            raise UserError(f"{place_of(unit, i)}: chosen and rejected are the same", field="data", hint=hint)
        n = prompt_length(a)
        if prompt_length(b) != n or not torch.equal(a.tokens[:n], b.tokens[:n]):
            raise UserError(f"{place_of(unit, i)}: chosen and rejected answer different prompts", field="data")
        pairs.append(unit)
    return pairs
