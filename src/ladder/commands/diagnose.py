"""`ladder diagnose`: replays a run's log files through the alarms and prints their findings."""

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

# stages that train a policy on rewards, the only ones with alarms
REWARDED = tuple(kind for kind, cls in KINDS.items() if issubclass(cls, PolicyRewards))


def diagnose_run(run: Path, *, as_json: bool) -> bool:
    """Prints every finding; returns whether there was any. Raises UserError when no stage trains on rewards."""
    recipe, _ = recipes.load(str(run / "recipe.yaml"))
    stages = {n: s for n, s in recipe.stages.items() if s["kind"] in REWARDED and (run / n / "metrics.jsonl").exists()}
    if not stages:
        kinds = ", ".join(REWARDED)
        raise UserError(f"no stage of this run trained on rewards; the alarms cover stages of kind {kinds}", file=run)
    findings = {name: replay(run / name, Alarms.model_validate(s.get("alarms", {}))) for name, s in stages.items()}
    if as_json:
        print(json.dumps({name: [f.record() for f in of_stage] for name, of_stage in findings.items()}, indent=1))
    else:
        _print_findings(findings)
    return any(findings.values())


def _print_findings(findings: dict[str, list[Finding]]) -> None:
    console = Console()
    for name, of_stage in findings.items():
        console.say(f"[bold]{name}[/bold]: " + (f"{len(of_stage)} findings" if of_stage else "no findings"))
        for finding in of_stage:
            say(console, finding)
