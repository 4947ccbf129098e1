"""The command diagnose: what the alarms say of a run, or of one stage of it, from its files."""

from __future__ import annotations

import json
from pathlib import Path

from ladder.base.errors import UserError
from ladder.diagnose.detectors import Alarms
from ladder.diagnose.finding import Finding
from ladder.diagnose.watch import replay
from ladder.pipeline import recipe as recipes
from ladder.pipeline.alarms import say
from ladder.pipeline.kinds import KINDS
from ladder.pipeline.kinds.policy_rewards import PolicyRewards
from ladder.tracking.console import Console

REWARDED = tuple(kind for kind, cls in KINDS.items() if issubclass(cls, PolicyRewards))


def diagnose_run(run: Path, *, as_json: bool) -> bool:
    """Prints every finding; whether there was any. Raises UserError where no stage learned from rewards."""
    recipe, _ = recipes.load(str(run / "recipe.yaml"))
    stages = {n: s for n, s in recipe.stages.items() if s["kind"] in REWARDED and (run / n / "metrics.jsonl").exists()}
    if not stages:
        raise UserError("no stage of this run learned from rewards, and the alarms are about those", file=run)
    found = {name: replay(run / name, Alarms.model_validate(s.get("alarms", {}))) for name, s in stages.items()}
    if as_json:
        print(json.dumps({name: [f.record() for f in each] for name, each in found.items()}, indent=1))
    else:
        _tell(found)
    return any(found.values())


def _tell(found: dict[str, list[Finding]]) -> None:
    console = Console()
    for name, each in found.items():
        console.say(f"[bold]{name}[/bold]: " + (f"{len(each)} findings" if each else "nothing found"))
        for finding in each:
            say(console, finding)
