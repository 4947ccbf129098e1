"""Runs the comparison and prints the table.

    python -m benchmarks.speed --model SmolLM2-135M-Instruct.gguf --data DIRECTORY
    python -m benchmarks.speed ... --only sft,dpo --threads 1,2 --rounds 3 --name mine

Results are added to benchmarks/speed/results/NAME.json, with the table as Markdown beside it: sides that were measured
before under that name are replaced, the others stay.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.speed import command, environments, machine, measure, processes, r1_zero, report, workloads
from benchmarks.speed.prepare import Sources, prepare
from benchmarks.speed.processes import ROOT, Place
from benchmarks.speed.workload import Side, Workload


def main() -> None:
    args = arguments()
    chosen = [w if not args.quick else quick(w) for w in workloads.chosen(args.only)]
    chosen = [shorn(w, args.sides) for w in chosen]
    environments.provide(chosen)
    prepare(args.work, Sources(args.model, args.data))
    if any(w.name == "r1_zero" for w in chosen):
        r1_zero.prepare(args.work)
    path = command.RESULTS / f"{args.name}.json"
    document = json.loads(path.read_text()) if path.exists() else {"limits": {}, "results": {}}
    document["machine"] = machine.describe(ROOT)
    for threads in args.threads:
        place = Place(args.cores, threads)
        print(f"{threads} threads on cores {args.cores[:threads]}", flush=True)
        document["limits"][str(threads)] = limits(args.work, place, document["limits"].get(str(threads)), args.quick)
        for workload in chosen:
            print(workload.title, flush=True)
            made = measure.measure(workload, args.work, place, args.rounds, args.limit, command.say)
            key = f"{workload.name}/{threads}"
            document["results"][key] = measure.joined(document["results"].get(key), made)
            write(path, document)
    print(report.markdown(document))


def write(path: Path, document: dict[str, Any]) -> None:
    document["results"] = {k: document["results"][k] for k in sorted(document["results"], key=_place)}
    command.write(path, document, report.markdown(document))


def _place(key: str) -> tuple[int, int]:
    """Where a result stands: by threads, then as the workloads are listed."""
    name, _, threads = key.partition("/")
    return int(threads), list(workloads.WORKLOADS).index(name)


def limits(work: Path, place: Place, before: dict[str, Any] | None, fast: bool) -> dict[str, Any]:
    """The processor's; the higher of what was measured before under this name and now."""
    side = Side("limits", "ours", "ours", "limits", {"budget": 0.3 if fast else 2.0})
    now = processes.run(side, work, f"limits-{place.threads}", place, 600)
    for name in ("fp32_gflops", "bf16_gflops", "read_gb_s"):
        now[name] = max(now[name], (before or {}).get(name, 0.0))
    return now


def quick(workload: Workload) -> Workload:
    """As little as shows that everything runs. Its figures mean nothing."""
    from dataclasses import replace

    least = {"steps": 2, "repetitions": 2, "tokens": 8, "limits": [8, 1] * 32}
    sides = [s.told(**{k: v for k, v in least.items() if k in s.options}) for s in workload.sides]
    return replace(workload, sides=sides, judge=None)


def shorn(workload: Workload, sides: str | None) -> Workload:
    """With our side and the peers' whose name and precision hold the given text."""
    from dataclasses import replace

    if sides is None:
        return workload
    wanted = [s.strip().lower() for s in sides.split(";")]
    kept = [s for s in workload.sides if any(w in f"{s.name} {s.precision}".lower() for w in wanted)]
    against = workload.losses if any(s.name == workload.losses and s.precision == "fp32" for s in kept) else None
    mine = any(s.role == "ours" for s in kept)
    return replace(workload, sides=kept, losses=against if mine else None)


def arguments() -> argparse.Namespace:
    parser = command.parser("python -m benchmarks.speed", __doc__)
    parser.add_argument("--only", help=f"some of {', '.join(workloads.WORKLOADS)}, or what they begin with")
    parser.add_argument("--sides", help="some sides only: parts of their names or precisions (ours;packed;bf16)")
    parser.add_argument("--threads", type=_numbers, default=(1, 2), help="numbers of threads (default: 1,2)")
    parser.add_argument("--cores", type=_numbers, help="the cores, those to prefer first (default: the last first)")
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds; the median counts (default: 2)")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds that a side may take (default: 3600)")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    args = parser.parse_args()
    args.cores = args.cores or tuple(sorted(os.sched_getaffinity(0), reverse=True))
    args.work = args.work.resolve()
    if args.quick:
        args.name, args.rounds = f"{args.name}-quick", 1
    command.check(parser, args)
    return args


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
