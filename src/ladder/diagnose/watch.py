"""Watches a run: fed a step's figures and some of its answers, says what is newly wrong. The same for a run that goes
on and for one that is read from its files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ladder.base.jsonl import read_lines
from ladder.diagnose.detectors import DETECTORS, Alarms
from ladder.diagnose.finding import Finding

Answer = tuple[float, str]
"""(reward, what is shown of prompt and answer)."""


class Watch:
    """Every alarm fires once. told: the names of those that have fired already."""

    def __init__(self, alarms: Alarms, told: Sequence[str] = ()) -> None:
        self.alarms = alarms
        self.told = {*told, *alarms.off}
        self.rows: list[Mapping[str, Any]] = []
        self.first = ""

    def step(self, step: int, figures: Mapping[str, float], answers: Sequence[Answer]) -> list[Finding]:
        """What this step shows for the first time. answers: some of the step's; the best rewarded is shown."""
        best = max(answers)[1] if answers else ""
        self.first = self.first or best
        self.rows.append({**figures, "step": step})
        found = []
        for name, detect in DETECTORS.items():
            seen = None if name in self.told else detect(self.rows, self.alarms)
            if seen is not None:
                self.told.add(name)
                texts = tuple(text for text in (self.first, best) if text)
                found.append(Finding(name, step, seen.says, seen.next, seen.figures, texts))
        return found


def answers_of(rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """The judged ones of a step's lines in rollouts.jsonl."""
    return [(float(r["reward"]), f"{r['prompt']} {r['text']}") for r in rows if r.get("reward") is not None]


def replay(stage: Path, alarms: Alarms) -> list[Finding]:
    """Every finding of a stage that was run, from metrics.jsonl and rollouts.jsonl."""
    return replay_into(Watch(alarms), stage)


def replay_into(watch: Watch, stage: Path, before: int | None = None) -> list[Finding]:
    """What a watch finds in a stage's files. before: leave out this step and later ones."""
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for row in read_lines(stage / "rollouts.jsonl"):
        by_step.setdefault(int(row["step"]), []).append(row)
    found: list[Finding] = []
    for row in read_lines(stage / "metrics.jsonl"):
        step = int(row["step"])
        if before is not None and step >= before:
            break
        found += watch.step(step, row, answers_of(by_step.get(step, [])))
    return found
