"""Runs the alarms over a training run, step by step: live during training, or replayed from the run's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ladder.base.jsonl import read_lines
from ladder.diagnose.detectors import DETECTORS, Alarms
from ladder.diagnose.finding import Finding
from ladder.diagnose.series import History

LoggedAnswer = tuple[float, str]
"""(reward, prompt and completion as text)."""


class Watch:
    """Runs every detector at each step; an alarm fires at most once. told: names of alarms that have already fired."""

    def __init__(self, alarms: Alarms, told: Sequence[str] = ()) -> None:
        self.alarms = alarms
        self.told = {*told, *alarms.off}
        self.history = History()
        self.first = ""

    def step(self, step: int, figures: Mapping[str, float], answers: Sequence[LoggedAnswer]) -> list[Finding]:
        """The alarms that fire at this step. answers: a sample of the step's rollouts; a finding quotes the one with
        the highest reward."""
        best = max(answers)[1] if answers else ""
        self.first = self.first or best
        self.history.append({**figures, "step": step})
        findings = []
        for name, detect in DETECTORS.items():
            detection = None if name in self.told else detect(self.history, self.alarms)
            if detection is not None:
                self.told.add(name)
                texts = tuple(text for text in (self.first, best) if text)
                findings.append(Finding(name, step, detection.says, detection.next, detection.figures, texts))
        return findings


def answers_of(rows: Sequence[Mapping[str, Any]]) -> list[LoggedAnswer]:
    """The scored answers among one step's lines of rollouts.jsonl."""
    return [(float(r["reward"]), f"{r['prompt']} {r['text']}") for r in rows if r.get("reward") is not None]


def replay(stage: Path, alarms: Alarms) -> list[Finding]:
    """Every finding of a stage, from its metrics.jsonl and rollouts.jsonl. stage: the stage's directory."""
    return replay_into(Watch(alarms), stage)


def replay_into(watch: Watch, stage: Path, before: int | None = None) -> list[Finding]:
    """Feeds the logged steps of a stage to `watch` and returns its findings. before: stop before this step."""
    answers_by_step: dict[int, list[Mapping[str, Any]]] = {}
    for row in read_lines(stage / "rollouts.jsonl"):
        answers_by_step.setdefault(int(row["step"]), []).append(row)
    findings: list[Finding] = []
    for row in read_lines(stage / "metrics.jsonl"):
        step = int(row["step"])
        if before is not None and step >= before:
            break
        findings += watch.step(step, row, answers_of(answers_by_step.get(step, [])))
    return findings
