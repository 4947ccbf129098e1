"""The command lab: list the experiments, or perform one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ladder.base.errors import UserError
from ladder.lab.experiments import EXPERIMENTS
from ladder.lab.experiments import find as find_experiment
from ladder.lab.run import perform
from ladder.tracking.console import Console


def list_experiments() -> None:
    """ladder lab, without a name."""
    rows = [[e.name, e.claim] for e in EXPERIMENTS.values()]
    Console().table("", ["experiment", "the claim"], rows, 2)


def perform_experiment(name: str, changes: Sequence[str], seeds: str, out: Path, *, quiet: bool) -> None:
    """ladder lab NAME."""
    words = [w.strip() for w in seeds.split(",")]
    if not all(w.isdigit() for w in words):
        raise UserError(f"{seeds!r} is no list of numbers", field="--seeds", hint="write e.g. 0,1,2")
    experiment = find_experiment(name)
    verdict = perform(experiment, [int(w) for w in words], out, Console(quiet=quiet), changes)
    console = Console()
    if verdict.table:
        console.table("", verdict.table[0], verdict.table[1:])
    console.say(f"[dim]The claim: {experiment.claim}[/dim]")
    console.say(f"[bold]{'Holds here' if verdict.holds else 'Does not hold here'}.[/bold] {verdict.sentence}")
    console.say(f"Figures and the picture: [bold]{out / name}[/bold]")
