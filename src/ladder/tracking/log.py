"""What a run writes down as it goes: `metrics.jsonl` first (the truth), then whoever else listens.

One JSON object a line, flushed each step. On resume, lines after the checkpoint's step are cut off, so an interrupted
run's file equals an undisturbed one's but for the times. Sinks (`trackers.py`) get every record; one that fails says
so once and is left out from then on: a tracker's trouble never costs a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ladder.base.jsonl import Lines


class Sink(Protocol):
    """A listener: TensorBoard, W&B, MLflow, trackio."""

    name: str

    def log(self, step: int, figures: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class RunLog:
    """A stage's log: metrics, rollouts, evaluations, and what alarms found."""

    def __init__(self, directory: Path, sinks: Sequence[Sink] = (), say: Callable[[str], None] = print) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.metrics = Lines(directory / "metrics.jsonl")
        self.rollouts = Lines(directory / "rollouts.jsonl")
        self.evals = Lines(directory / "evals.jsonl")
        self.findings = Lines(directory / "findings.jsonl")
        self.sinks, self.say = list(sinks), say

    def cut(self, step: int) -> None:
        for lines in (self.metrics, self.rollouts, self.evals, self.findings):
            lines.cut(step)

    def cut_evals(self, step: int) -> None:
        """Drops evaluations of `step` and later: they are made anew."""
        self.evals.cut(step - 1)

    def step(self, step: int, figures: dict[str, float]) -> None:
        """One step's figures; what is not finite is written as null."""
        clean = {k: (v if math.isfinite(v) else None) for k, v in figures.items()}
        self.metrics.write({"step": step, "time": round(time.time(), 3), **clean})
        finite = {k: v for k, v in figures.items() if math.isfinite(v)}
        self._tell(lambda sink: sink.log(step, finite))

    def close(self) -> None:
        self._tell(lambda sink: sink.close())

    def _tell(self, what: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            try:
                what(sink)
            except Exception as err:  # noqa: BLE001  a tracker can fail in any way, and none is worth the run
                self.say(left_out(sink.name, err))
                self.sinks.remove(sink)


def left_out(name: str, err: Exception) -> str:
    """What is said, once, of a tracker that failed."""
    return f"{name} failed and is left out from here on: {type(err).__name__}: {' '.join(str(err).split())}"
