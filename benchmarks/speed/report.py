"""The figures as Markdown: ratios beside their targets, memory, phases, the processor's limit, losses.

share: the least arithmetic of the work (6 N a token trained, 2 N a token read or drawn, N parameters) over the fastest
fp32 matrix product of this run. A side in bf16 is measured against the same limit, so it can exceed it.
"""

from __future__ import annotations

from benchmarks.speed.measure import shown
from benchmarks.speed.tables import Result, done, failed, fastest, phases, table, versions
from benchmarks.speed.workload import Workload
from benchmarks.speed.workloads import WORKLOADS

HEAD = ["workload", "precision", "ours", "peer", "its figure", "ratio", "asked", "peak GB, ours / peer"]
MEMORY = 0.45


def markdown(document: Result) -> str:
    results: list[Result] = list(document["results"].values())
    parts = [_machine(document["machine"], results)]
    for threads in sorted({r["threads"] for r in results}):
        mine = [r for r in results if r["threads"] == threads]
        limit = document["limits"].get(str(threads))
        parts += [f"## {threads} thread{'s' if threads > 1 else ''}", _limit(limit), _ratios(mine)]
        parts += [_shares(mine, limit), phases(mine, WORKLOADS), _losses(mine), failed(mine, WORKLOADS)]
    return "\n\n".join(p for p in parts if p) + "\n"


def _machine(machine: Result, results: list[Result]) -> str:
    told = versions(results)
    changed = " with changes" if machine["changed"] else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['flags'])}), {machine['memory_gb']} GB; "
        f"{machine['system']}, Python {machine['python']}; {told}; commit {machine['commit']}{changed}."
    )


def _limit(limit: Result | None) -> str:
    if limit is None:
        return ""
    return (
        f"Limit: {limit['fp32_gflops']:.0f} GFLOP/s in fp32, {limit['bf16_gflops']:.0f} in bf16, "
        f"{limit['read_gb_s']:.1f} GB/s read."
    )


def _of(precision: str, sides: list[Result]) -> Result | None:
    """The side of a precision."""
    return next((s for s in sides if s["precision"] == precision), None)


def _ratios(results: list[Result]) -> str:
    lines: list[list[str]] = []
    for result in results:
        workload, ours, peers = done(result, WORKLOADS)
        for peer in peers:
            mine = _of(peer["precision"], ours) or _of("fp32", ours)
            if mine is not None:
                lines.append(_ratio(workload, mine, peer, peers))
    return table(HEAD, lines)


def _ratio(workload: Workload, ours: Result, peer: Result, peers: list[Result]) -> list[str]:
    best = fastest(peers, peer["role"]) is peer
    asked = workload.at_least.get(peer["role"]) if best else None
    ratio = ours["rate"] / peer["rate"]
    memory = f"{ours['peak_gb']:.1f} / {peer['peak_gb']:.1f}"
    if workload.memory and fastest(peers, "tuned") is peer:
        share = ours["peak_gb"] / peer["peak_gb"]
        memory += f" = {share:.2f}× (asked {MEMORY}× {_mark(share <= MEMORY)})"
    return [
        workload.title,
        peer["precision"] if peer["precision"] == ours["precision"] else f"{ours['precision']} / {peer['precision']}",
        shown(workload, ours["rate"]),
        f"**{peer['name']}**" if asked else peer["name"],
        shown(workload, peer["rate"]),
        f"{ratio:.2f}×",
        f"{asked:g}× {_mark(ratio >= asked)}" if asked else "",
        memory,
    ]


def _mark(good: bool) -> str:
    return "✓" if good else "✗"


def _shares(results: list[Result], limit: Result | None) -> str:
    if limit is None:
        return ""
    lines: list[list[str]] = []
    for result in results:
        workload, sides, peers = done(result, WORKLOADS)
        best = max((p for p in peers if p["precision"] == "fp32"), key=lambda p: p["rate"], default=None)
        for ours in sides:
            if "flops" in ours:
                of_work = [_share(ours, ours["rate"], limit), _share(ours, best["rate"], limit) if best else ""]
                title = f"{workload.title} ({ours['precision']})"
                lines.append([title, *of_work, *_by_phase(ours, limit), _asked(workload)])
    head = ["share of the fp32 limit", "ours", "fastest fp32 peer", "our update", "our drawing", "asked"]
    return table(head, lines)


def _share(ours: Result, rate: float, limit: Result) -> str:
    """Of the limit, at a rate of the same work."""
    return f"{ours['flops'] / ours['amount'] * rate / 1e9 / limit['fp32_gflops']:.0%}"


def _by_phase(ours: Result, limit: Result) -> list[str]:
    if "update_flops" not in ours:
        return ["", ""]
    peak = 1e9 * limit["fp32_gflops"]
    phases = {"training": "update_flops", "generation": "drawing_flops"}
    return [f"{ours[flops] / ours['parts'][phase] / peak:.0%}" for phase, flops in phases.items()]


def _asked(workload: Workload) -> str:
    return f"{workload.share:.0%}" if workload.share else ""


def _losses(results: list[Result]) -> str:
    lines = []
    for result in results:
        for found in result["losses"]:
            title = f"{WORKLOADS[result['workload']].title} ({found['precision']})"
            apart = ", ".join(f"{d:.1e}" for d in found["apart"][:4])
            verdict = {True: "yes", False: "**no**", None: ""}[found["equal"]]
            lines.append([title, found["against"], apart, verdict])
    return table(["first losses", "against, in fp32", "apart by", "equal"], lines)
