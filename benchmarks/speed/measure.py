"""One workload at one number of threads: every side in turn, round after round, and what comes of it.

The rounds are interleaved, so that a machine that slows down slows everybody down. A side's figure is the median of its
rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.processes import Failed, Place, run
from benchmarks.speed.workload import Side, Workload

Say = Callable[[str], None]
KEPT = (
    "losses", "flops", "update_flops", "drawing_flops", "versions", "each", "start", "curve",
    "bytes", "decoding_steps", "step_seconds", "micro", "gpu_first_gb", "gpu_peak_gb", "gpu_reserved_gb",
)  # fmt: skip
"""What a side's own report says and its summary keeps."""


def measure(workload: Workload, work: Path, place: Place, rounds: int, limit: float, say: Say) -> dict[str, Any]:
    """What every side reported, and whether ours learned the same."""
    sides = list(workload.sides)
    got: list[list[dict[str, Any]]] = [[] for _ in sides]
    errors: list[str | None] = [None] * len(sides)
    for number in range(rounds):
        for i, side in enumerate(sides):
            if errors[i] is None and number < (side.rounds or rounds):
                try:
                    name = f"{workload.name}/{slug(side)}-{place.threads}"
                    got[i].append(judged(workload, run(side, work, name, place, limit), work, name, place, limit))
                    say(f"  {side.name} ({side.precision}): {shown(workload, rate(workload, got[i][-1]))}")
                except Failed as err:
                    errors[i] = str(err)
                    say(f"  {side.name} ({side.precision}) FAILED: {err}")
    made = [summary(workload, *each) for each in zip(sides, got, errors, strict=True)]
    return {"workload": workload.name, "threads": place.threads, "sides": made, "losses": losses(workload, made)}


def joined(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """Both measurements of a workload; of what is in both, the later one."""

    def later(name: str, *keys: str) -> list[dict[str, Any]]:
        found = {tuple(one[k] for k in keys): one for one in [*(before or {}).get(name, []), *now[name]]}
        return list(found.values())

    return now | {"sides": later("sides", "name", "precision"), "losses": later("losses", "against", "precision")}


def judged(
    workload: Workload, report: dict[str, Any], work: Path, name: str, place: Place, limit: float
) -> dict[str, Any]:
    """The report with what the workload's judge says of it, if it has one."""
    if workload.judge is None:
        return report
    judge = Side("judge", "ours", "ours", workload.judge, {"checkpoints": report["checkpoints"]})
    said = run(judge, work, f"{name}/judge", place, limit)
    return report | {k: v for k, v in said.items() if k not in ("peak_gb", "wall", "versions")}


def slug(side: Side) -> str:
    return "".join(c if c.isalnum() else "-" for c in f"{side.name} {side.precision}").strip("-").lower()


def rate(workload: Workload, report: dict[str, Any]) -> float:
    """Units of work a second."""
    return report["amount"][workload.unit] / report["seconds"]


def shown(workload: Workload, value: float) -> str:
    if workload.inverse:
        return f"{1 / value:.3g} s"
    return f"{value:.3g} {workload.unit}/s" if value < 1000 else f"{value:,.0f} {workload.unit}/s"


def summary(workload: Workload, side: Side, reports: Sequence[dict[str, Any]], error: str | None) -> dict[str, Any]:
    """A side's figures, JSON-able."""
    made: dict[str, Any] = {"name": side.name, "role": side.role, "precision": side.precision, "error": error}
    made |= {"options": side.options, "env": side.env}
    if not reports:
        return made
    rates = [rate(workload, r) for r in reports]
    last = reports[-1]
    made |= {"rate": median(rates), "rates": rates, "peak_gb": max(r["peak_gb"] for r in reports)}
    made |= {"amount": last["amount"][workload.unit], "wall": [r["wall"] for r in reports]}
    made |= {k: last[k] for k in KEPT if k in last}
    if "parts" in last:
        made["parts"] = {k: median([r["parts"][k] for r in reports]) for k in last["parts"]}
    return made


def losses(workload: Workload, sides: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How far each of our sides' first losses are from those of the peer that does the same steps in fp32.

    In fp32 they must be equal within the workload's tolerance; in shorter types they are shown.
    """
    other = next((s for s in sides if s["name"] == workload.losses and s["precision"] == "fp32"), {})
    found = []
    for ours in (s for s in sides if s["role"] == "ours" and "losses" in s and "losses" in other):
        apart = [abs(a - b) for a, b in zip(ours["losses"], other["losses"], strict=False)][:8]
        equal = max(apart[:3]) <= workload.tolerance if ours["precision"] == "fp32" else None
        found.append({"against": other["name"], "precision": ours["precision"], "apart": apart, "equal": equal})
    return found
