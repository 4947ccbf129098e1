"""A stage's log files: `metrics.jsonl` (the record of truth), rollouts, evaluations, findings; and its trackers.

One JSON object a line, flushed each step. On resume, lines after the checkpoint's step are dropped, so an interrupted
run's file equals an uninterrupted run's except for the times. Trackers (`trackers.py`) receive every step's metrics; a
tracker that raises is reported once and then disabled, so that its failure never ends a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ladder.base.jsonl import JsonLines


class Sink(Protocol):
    """An experiment tracker that receives a stage's metrics: TensorBoard, W&B, MLflow, trackio."""

    name: str

    def log(self, step: int, figures: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class RunLog:
    """A stage's log files: metrics, rollouts, evaluations, findings of the alarms. say: prints a warning."""

    def __init__(self, directory: Path, sinks: Sequence[Sink] = (), say: Callable[[str], None] = print) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.metrics = JsonLines(directory / "metrics.jsonl")
        self.rollouts = JsonLines(directory / "rollouts.jsonl")
        self.evals = JsonLines(directory / "evals.jsonl")
        self.findings = JsonLines(directory / "findings.jsonl")
        self.sinks, self.say = list(sinks), say

    def cut(self, step: int) -> None:
        """Drops the records after `step` from all files."""
        for lines in (self.metrics, self.rollouts, self.evals, self.findings):
            lines.cut(step)

    def cut_evals(self, step: int) -> None:
        """Drops the evaluations of `step` and later, before they are run again."""
        self.evals.cut(step - 1)

    def step(self, step: int, figures: dict[str, float]) -> None:
        """Writes one step's metrics, NaN and infinity as null; trackers receive the finite values only."""
        nullable = {k: (v if math.isfinite(v) else None) for k, v in figures.items()}
        self.metrics.write({"step": step, "time": round(time.time(), 3), **nullable})
        finite = {k: v for k, v in figures.items() if math.isfinite(v)}
        self._call_sinks(lambda sink: sink.log(step, finite))

    def close(self) -> None:
        self._call_sinks(lambda sink: sink.close())

    def _call_sinks(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            try:
                call(sink)
            except Exception as err:  # noqa: BLE001  a tracker can fail in any way, and none may end the run
                self.say(left_out(sink.name, err))
                self.sinks.remove(sink)


def left_out(name: str, err: Exception) -> str:
    """The warning about a tracker that raised."""
    return f"tracker {name} failed and is disabled from here on: {type(err).__name__}: {' '.join(str(err).split())}"
