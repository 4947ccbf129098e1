"""The figures of a GPU as Markdown: ratios, shares of what the GPU can do, phases, first losses.

share of the products: the least arithmetic of the work (as `report.py` counts it) over the fastest bfloat16 product of
this run. share of the bandwidth: what decoding has to read at least (`traffic.py`) over what a copy moves.
"""

from __future__ import annotations

from statistics import median

from benchmarks.speed.gpu_workloads import Setting, workloads
from benchmarks.speed.measure import shown
from benchmarks.speed.tables import Result, Workloads, done, failed, fastest, phases, table, versions
from benchmarks.speed.workload import Workload

WORKLOADS: Workloads = workloads(Setting("tiny", "cuda"))
"""Titles and units are those of any model."""
EQUAL = ("tuned", "default")
"""Roles of peers that learn what ours does from a step."""


def markdown(document: Result) -> str:
    results: list[Result] = list(document["results"].values())
    limits = document["limits"]
    parts = [machine(document["machine"], results), limit(limits)]
    for model in dict.fromkeys(r["model"] for r in results):
        mine = sorted((r for r in results if r["model"] == model), key=lambda r: list(WORKLOADS).index(r["workload"]))
        parts += [f"## Random weights as Qwen2.5-{model.upper()}", ratios(mine), shares(mine, limits)]
        parts += [phases(mine, WORKLOADS), losses(mine), failed(mine, WORKLOADS)]
    return "\n\n".join(p for p in parts if p) + "\n"


def machine(found: Result, results: list[Result]) -> str:
    gpu, driver = found["gpu"], f", driver {found['driver']}" if found["driver"] else ""
    cuda = f", CUDA {gpu['cuda']}" if gpu["cuda"] else ""
    commit = f"commit {found['commit']}{' with changes' if found['changed'] else ''}" if found["commit"] else ""
    about = [
        f"{gpu['name']}, {gpu['memory_gb']} GB{driver}{cuda}",
        f"{found['processor']}, {found['cores']} cores",
        f"{found['system']}, Python {found['python']}",
        versions(results),
        commit,
    ]
    return "; ".join(part for part in about if part) + "."


def limit(limits: Result) -> str:
    return (
        f"Limit: {limits['bf16_tflops']:.3g} TFLOP/s in bf16, {limits['tf32_tflops']:.3g} in TF32, "
        f"{limits['copy_gb_s']:,.0f} GB/s copied (read and written)."
    )


def ratios(results: list[Result]) -> str:
    lines: list[list[str]] = []
    for result in results:
        workload, ours, peers = done(result, WORKLOADS)
        best = fastest(peers, *EQUAL)
        for mine in ours or [None]:
            for peer in peers or [None]:
                if mine or peer:
                    lines.append(ratio(workload, mine, peer, best))
    head = ["workload", "ours", "peer", "its figure", "ratio", "of the median step, ms", "peak GB, ours / peer"]
    return table(head, lines)


def ratio(workload: Workload, mine: Result | None, peer: Result | None, best: Result | None) -> list[str]:
    """A line of the table. Where one of the two is missing, what is there is shown."""
    figures = [shown(workload, side["rate"]) if side else "" for side in (mine, peer)]
    name = "" if peer is None else (f"**{peer['name']}**" if peer is best else peer["name"]) + at_once(peer)
    times = f"{mine['rate'] / peer['rate']:.2f}×" if mine and peer else ""
    memory = " / ".join(gigabytes(side) if side else "-" for side in (mine, peer))
    return [workload.title, figures[0], name, figures[1], times, median_step(mine, peer), memory]


def median_step(mine: Result | None, peer: Result | None) -> str:
    """Where a step waits for a compilation, the median says what the others take."""
    steps = [1000 * median(timed(side)) for side in (mine, peer) if side and side.get("step_seconds")]
    if len(steps) < 2:
        return ""
    return f"{steps[1] / steps[0]:.2f}× ({steps[0]:.3g} / {steps[1]:.3g})"


def timed(side: Result) -> list[float]:
    """The seconds of the steps that count: the first one's are not noted, and others may warm up as well."""
    return side["step_seconds"][side["options"].get("warm", 1) - 1 :]


def at_once(peer: Result) -> str:
    """The micro-batch, where it is not the batch."""
    options = peer["options"]
    batch = options.get("batch") or options["prompts"] * options["group"]
    return f", {peer['micro']} at once" if peer.get("micro", batch) != batch else ""


def gigabytes(side: Result) -> str:
    """The most that tensors took of the GPU; on a processor, of the process."""
    return f"{side.get('gpu_peak_gb', side['peak_gb']):.1f}"


def shares(results: list[Result], limits: Result) -> str:
    lines: list[list[str]] = []
    for result in results:
        workload, ours, peers = done(result, WORKLOADS)
        best = fastest(peers, *EQUAL)
        for mine in ours:
            sides = [mine, best] if best else [mine]
            work = [share(mine["flops"], mine, side, 1e12 * limits["bf16_tflops"]) for side in sides]
            read = [share(mine.get("bytes"), mine, side, 1e9 * limits["copy_gb_s"]) for side in sides]
            update, drawing = ([phase(mine, side, limits, name) for side in sides] for name in PHASES)
            lines.append([workload.title, *(both(x) for x in (work, update, drawing, read))])
    of = "ours / fastest peer"
    return table([f"share, {of}", "of the bf16 products", "its update", "its drawing", "of the bandwidth"], lines)


def both(of: list[str]) -> str:
    return " / ".join(of) if any(of) else ""


def share(amount: float | None, mine: Result, side: Result, limit: float) -> str:
    """Of a limit, if our side's timed work takes `amount` of it, at a side's rate."""
    return "" if amount is None else f"{amount / mine['amount'] * side['rate'] / limit:.1%}"


PHASES = {"training": "update_flops", "generation": "drawing_flops"}


def phase(mine: Result, side: Result, limits: Result, name: str) -> str:
    """Of the products, in a phase of a step."""
    if PHASES[name] not in mine or "parts" not in side:
        return ""
    return f"{mine[PHASES[name]] / side['parts'][name] / 1e12 / limits['bf16_tflops']:.1%}"


def losses(results: list[Result]) -> str:
    """How far first losses are from those of TRL's same steps: two ways to round, shown and not judged."""
    lines = []
    for result in results:
        workload, ours, peers = done(result, WORKLOADS)
        other = next((p for p in peers if p["name"] == workload.losses), None)
        for mine in ours:
            if other is not None and "losses" in mine and "losses" in other:
                pairs = list(zip(mine["losses"], other["losses"], strict=False))[:4]
                lines.append([workload.title, other["name"], *(", ".join(x) for x in apart(pairs))])
    return table(["first losses", "against", "ours", "apart by"], lines)


def apart(pairs: list[tuple[float, float]]) -> tuple[list[str], list[str]]:
    return [f"{a:.4f}" for a, _ in pairs], [f"{abs(a - b):.1e}" for a, b in pairs]
