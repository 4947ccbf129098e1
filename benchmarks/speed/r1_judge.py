"""What became of an R1-Zero run, ours or a peer's: the accuracy of its checkpoints, and when it met the goal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.speed import r1_zero


def run(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    points = r1_zero.curve(options["checkpoints"], str(work / r1_zero.OPTIONS["model"]))
    seconds = r1_zero.reached(points)
    if seconds is None:
        best = max(p["accuracy"] for p in points)
        raise SystemExit(f"{r1_zero.GOAL:.0%} was never reached, the best checkpoint has {best:.1%}")
    return {"curve": points, "seconds": seconds}
