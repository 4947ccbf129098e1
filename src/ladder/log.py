"""What a run writes down as it goes: `metrics.jsonl` first (the truth), then whoever else listens.

One JSON object a line, flushed each step. On resume, lines after the checkpoint's step are cut off, so an interrupted
run's file equals an undisturbed one's but for the times. Sinks (`trackers.py`) get every record; one that fails says
so once and is left out from then on: a tracker's trouble never costs a run.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol


class Sink(Protocol):
    """A listener: TensorBoard, W&B, MLflow, trackio."""

    name: str

    def log(self, step: int, figures: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class Lines:
    """A JSONL file that only grows, and can be cut back to a step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *records: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as f:
            for record in records:
                f.write(json.dumps(record, ensure_ascii=False) + "\n")

    def cut(self, step: int) -> None:
        """Drops records after `step`, and a line that was being written when the run died."""
        if not self.path.exists():
            return
        kept = []
        for line, record in _records(self.path):
            if record["step"] > step:
                break
            kept.append(line + "\n")
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, self.path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole records of a JSONL file; none when there is no file."""
    return [record for _, record in _records(path)] if path.exists() else []


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, record) up to the first line that is not whole. Only LF ends a line: a text may hold U+2028."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            return
        yield line, record


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
