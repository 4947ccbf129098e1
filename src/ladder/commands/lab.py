"""`ladder lab`: lists the experiments or runs one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ladder.base.errors import UserError
from ladder.lab.experiments import EXPERIMENTS
from ladder.lab.experiments import find as find_experiment
from ladder.lab.run import perform
from ladder.tracking.console import Console


def list_experiments() -> None:
    """`ladder lab` without a name."""
    rows = [[e.name, e.claim] for e in EXPERIMENTS.values()]
    Console().table("", ["experiment", "claim"], rows, 2)


def perform_experiment(name: str, changes: Sequence[str], seeds: str, out: Path, *, quiet: bool) -> None:
    """`ladder lab NAME`. seeds: comma-separated. Raises UserError."""
    seed_texts = [text.strip() for text in seeds.split(",")]
    if not all(text.isdigit() for text in seed_texts):
        raise UserError(f"{seeds!r} is not a list of seeds", field="--seeds", hint="write e.g. 0,1,2")
    experiment = find_experiment(name)
    verdict = perform(experiment, [int(text) for text in seed_texts], out, Console(quiet=quiet), changes)
    console = Console()
    if verdict.table:
        console.table("", verdict.table[0], verdict.table[1:])
    console.say(f"[dim]Claim: {experiment.claim}[/dim]")
    console.say(f"[bold]{'Holds here' if verdict.holds else 'Does not hold here'}.[/bold] {verdict.sentence}")
    console.say(f"Results and figure: [bold]{out / name}[/bold]")
