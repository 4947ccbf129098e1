"""The experiments by name. A new one is a module with an EXPERIMENT, a recipe in `recipes/lab/` and an entry here."""

from __future__ import annotations

from ladder.base.config import near
from ladder.base.errors import UserError
from ladder.lab import discovery, overoptimisation, staleness, two_roads, what_sft_changes
from ladder.lab.experiment import Experiment

MODULES = (overoptimisation, two_roads, discovery, staleness, what_sft_changes)
EXPERIMENTS: dict[str, Experiment] = {m.EXPERIMENT.name: m.EXPERIMENT for m in MODULES}


def find(name: str) -> Experiment:
    """The experiment of that name. Raises UserError when there is none."""
    if name not in EXPERIMENTS:
        message = f"no experiment is called {name!r}{near(name, list(EXPERIMENTS))}"
        raise UserError(message, hint="ladder lab lists them")
    return EXPERIMENTS[name]
