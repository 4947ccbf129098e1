"""Where the time of our side goes, workload by workload, at one thread: in torch's operators and with the kernels.

    python -m benchmarks.speed.profile --model SmolLM2-135M-Instruct.gguf --data DIRECTORY
    python -m benchmarks.speed.profile ... --only sft,dpo --name mine

Few steps, and smaller ones where a step is long (`LESS`): the shares are meant, not the speed, which a profiler that
sees thousands of operators a step slows down. Written to benchmarks/speed/results/profile-NAME.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.speed import command, machine, processes, workloads
from benchmarks.speed.categories import CATEGORIES, DECODING
from benchmarks.speed.prepare import Sources, prepare
from benchmarks.speed.processes import ROOT, Place
from benchmarks.speed.workload import Side, Workload

ONE_STEP = {"prompts": 2, "group": 4, "tokens": 32, "steps": 2}
LESS: dict[str, dict[str, int]] = {
    "sft": {"steps": 3},
    "dpo": {"steps": 2},
    "dpo_lora": {"steps": 2},
    "reward": {"steps": 2},
    "grpo": ONE_STEP,
    "grpo_kl": ONE_STEP,
    "rollouts": {"tokens": 48, "repetitions": 2},
}
"""What is asked of a workload here; the rest is as it is compared. The first step, or repetition, is a warm-up."""
WAYS = {"operators": "0", "kernels": "1"}
"""LADDER_KERNELS of each."""
DEFAULT = "sft,dpo,reward,grpo,rollouts"


def main() -> None:
    args = arguments()
    prepare(args.work, Sources(args.model, args.data))
    path = command.RESULTS / f"profile-{args.name}.json"
    document = json.loads(path.read_text()) if path.exists() else {"results": {}}
    document["machine"] = machine.describe(ROOT)
    for name in args.only:
        document["results"][name] = measured(workloads.WORKLOADS[name], args.work, args.cores)
        command.write(path, document, markdown(document))
    print(markdown(document))


def measured(workload: Workload, work: Path, cores: tuple[int, ...]) -> dict[str, Any]:
    """Both ways, each in a process of its own."""
    own = next(s for s in workload.sides if s.role == "ours" and s.precision == "fp32")
    options = own.options | LESS[workload.name]
    ways = {}
    for way, kernels in WAYS.items():
        told = {"program": own.program, "options": options, "kernels": way == "kernels"}
        side = Side(way, "ours", "ours", "profiled", told, {"LADDER_KERNELS": kernels})
        ways[way] = processes.run(side, work, f"{workload.name}/profile-{way}", Place(cores, 1), 600)
        command.say(f"{workload.name}, {way}: {ways[way]['seconds']:.2f} s a step")
    return {"options": options, "ways": ways}


# ------------------------------------------------------------ the table


def markdown(document: dict[str, Any]) -> str:
    m, results = document["machine"], document["results"]
    sides = [(name, way, r["ways"][way]) for name, r in results.items() for way in WAYS]
    rows = [
        ["share of the time", *(f"{name}, {way}" for name, way, _ in sides)],
        ["---"] * (len(sides) + 1),
        *([c, *(percent(side["shares"][c]) for _, _, side in sides)] for c in CATEGORIES),
        ["**seconds a step**", *(f"**{side['seconds']:.2f}**" for _, _, side in sides)],
        ["seconds on the processor", *(f"{side['busy']:.2f}" for _, _, side in sides)],
        ["pages from the system a step", *(f"{side['faults']:,}" for _, _, side in sides)],
        ["peak GB", *(f"{side['peak_gb']:.1f}" for _, _, side in sides)],
    ]
    lines = [
        f"{m['processor']}, one thread, fp32; commit {m['commit']}{' with changes' if m['changed'] else ''}.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(f"- {name}: {asked(r['options'])}{decoding(r['ways'])}" for name, r in results.items()),
        "",
        *(f"- {name}, {way}: {largest(side)}" for name, way, side in sides),
    ]
    return "\n".join(lines) + "\n"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.0005 else ""


def asked(options: dict[str, Any]) -> str:
    """How much a step is."""
    n = options["steps"] - 1 if "steps" in options else 1
    if "batch" in options:
        return f"{n} x {options['batch']} {'pairs' if options['rows'].startswith('pairs') else 'rows'}"
    return f"{n} x {options['prompts']} prompts x {options['group']} answers x at most {options['tokens']} tokens"


def decoding(ways: dict[str, dict[str, Any]]) -> str:
    """What is known of the one call of C."""
    side = ways["kernels"]
    found = side["decoding"]
    if not found["steps"]:
        return ""
    whole = side["shares"][DECODING] * side["seconds"] * side["steps"]
    each = 1000 / found["steps"]
    return (
        f"; a decoding step of {found['rows']:.0f} rows in C takes {whole * each:.0f} ms, the products of its sizes "
        f"alone {found['product_seconds'] * each:.0f} ms"
    )


def largest(side: dict[str, Any]) -> str:
    """The items that take most, with their calls a step."""
    return ", ".join(
        f"`{name}` {percent(share)} ({calls / side['steps']:,.0f})" for name, _, share, calls in side["largest"][:6]
    )


# ------------------------------------------------------------ arguments


def arguments() -> argparse.Namespace:
    parser = command.parser("python -m benchmarks.speed.profile", __doc__)
    parser.add_argument("--only", type=_names, default=DEFAULT, help=f"some of {', '.join(LESS)} (default: {DEFAULT})")
    parser.add_argument("--core", type=int, help="to run on (default: the last)")
    args = parser.parse_args()
    core = max(os.sched_getaffinity(0)) if args.core is None else args.core
    args.cores, args.threads, args.work = (core,), (1,), args.work.resolve()
    command.check(parser, args)
    return args


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [n for n in names if n not in LESS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(LESS)}")
    return names


if __name__ == "__main__":
    main()
