"""What the reports have in common: Markdown tables, versions, phases, sides that failed; workloads come by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.speed.workload import Workload

Result = dict[str, Any]
Workloads = Mapping[str, Workload]


def table(head: list[str], lines: Iterable[list[str]]) -> str:
    rows = [" | ".join(line) for line in lines]
    if not rows:
        return ""
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {row} |" for row in rows)])


def versions(results: list[Result]) -> str:
    """What the sides ran with."""
    found: dict[str, set[str]] = {}
    for side in (s for r in results for s in r["sides"]):
        for name, version in side.get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' and '.join(sorted(v))}" for name, v in sorted(found.items()))


def done(result: Result, workloads: Workloads) -> tuple[Workload, list[Result], list[Result]]:
    """The workload, our sides and the peers', those that came to their end."""
    sides = [s for s in result["sides"] if "rate" in s]
    ours = [s for s in sides if s["role"] == "ours"]
    return workloads[result["workload"]], ours, [s for s in sides if s["role"] != "ours"]


def fastest(peers: list[Result], *roles: str) -> Result | None:
    """Of some roles."""
    return max((p for p in peers if p["role"] in roles), key=lambda p: p["rate"], default=None)


def phases(results: list[Result], workloads: Workloads) -> str:
    lines: list[list[str]] = []
    for result in results:
        workload, ours, peers = done(result, workloads)
        for side in (s for s in [*ours, *peers] if "parts" in s):
            seconds = [f"{side['parts'][k]:.3g}" for k in ("generation", "logprob", "training")]
            lines.append([workload.title, side["name"], side["precision"], *seconds])
    return table(["seconds a step", "side", "precision", "drawing", "log-probabilities", "training"], lines)


def failed(results: list[Result], workloads: Workloads) -> str:
    lines = [
        f"- {workloads[r['workload']].title}, {s['name']} ({s['precision']}): {s['error'].splitlines()[0]}"
        for r in results
        for s in r["sides"]
        if s["error"]
    ]
    return "\n".join(["Did not come to its end:", *lines]) if lines else ""
