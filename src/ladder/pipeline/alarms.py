"""The alarms of a stage while it trains: every finding is shown on the console and written to findings.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ladder.diagnose.detectors import Alarms
from ladder.diagnose.finding import Finding
from ladder.diagnose.watch import Watch, answers_of, replay_into
from ladder.pipeline.stage import Context
from ladder.tracking.console import Console, shorten


class LiveAlarms:
    """Runs the detectors after every training step. answers: the step's lines of rollouts.jsonl, set by the rollout log
    (`rollout_log.watcher`). A resumed run replays the earlier steps from its files, so no alarm fires twice."""

    def __init__(self, ctx: Context, alarms: Alarms) -> None:
        self.ctx, self.alarms = ctx, alarms
        self.answers: Sequence[Mapping[str, Any]] = ()
        self.watch: Watch | None = None

    def step(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """Passes a step's figures to the detectors; returns the names of the alarms that fired and stop the run."""
        if self.watch is None:
            self.watch = Watch(self.alarms)
            replay_into(self.watch, self.ctx.directory, before=step)
        findings = self.watch.step(step, figures, answers_of(self.answers))
        for finding in findings:
            say(self.ctx.console, finding)
            self.ctx.log.findings.write(finding.record())
        return [f.name for f in findings if f.name in self.alarms.stop]


def say(console: Console, finding: Finding) -> None:
    """Prints a finding: what was detected, example answers, and what to do next."""
    console.say(f"  [bold red]{finding.name}[/bold red] at step {finding.step}: {finding.says}")
    for label, text in zip(("at first", "now"), finding.texts, strict=False):
        console.plain(f"    {label}: {shorten(text, 110)}")
    console.plain(f"    next: {finding.next}")
