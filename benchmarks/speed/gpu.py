"""The comparison on one GPU, by the machine's one environment, where nothing can be fetched and time is short.

    python -m benchmarks.speed.gpu_inputs --model SmolLM2-135M-Instruct.gguf --data DIRECTORY --to INPUTS
    python -m benchmarks.speed.gpu --inputs INPUTS --work DIRECTORY --models 0.5b,1.5b --name h100
    python -m benchmarks.speed.gpu ... --only sft,grpo --sides "ours;=TRL tuned" --until 280 --missing

Every side is a process of its own, one after another; ours and the likeliest peer of every workload come first. Results
are added to NAME.json and NAME.md after every side, so that an interruption loses one side. A side that fails is told
with the end of its log, and the others go on. `--device cpu --models tiny --quick` shows that everything runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed import command, gpu_report, gpu_workloads, machine, measure, processes
from benchmarks.speed.gpu_sizes import SIZES
from benchmarks.speed.gpu_workloads import Setting
from benchmarks.speed.processes import ROOT, Failed, Place, Started
from benchmarks.speed.workload import Side, Workload

BEGIN = 300.0
"""Seconds that the models and the limits may take."""
WHOLE = 2
"""Sides of a workload that come before any workload's others."""


@dataclass(frozen=True)
class Turn:
    """A side's turn. key: of its workload in the results."""

    key: str
    model: str
    workload: Workload
    side: Side

    @property
    def name(self) -> str:
        return f"{self.model}/{self.workload.name}/{measure.slug(self.side)}"


def main() -> None:
    begun = time.perf_counter()
    args = arguments()
    path = args.out / f"{args.name}.json"
    document = json.loads(path.read_text()) if path.exists() else {"results": {}}
    order = [t for t in turns(args) if not (args.missing and figure(document, t))]
    place = Place((), os.cpu_count() or 1, shared=True)
    begin(args, order, document, place)
    write(path, document)
    command.say(gpu_report.limit(document["limits"]))
    started: Started | None = None
    ahead: Started | None = None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for i, turn in enumerate(order):
            if args.until and time.perf_counter() - begun > args.until:
                command.say(f"{len(order) - i} sides are left: {', '.join(t.name for t in order[i:])}")
                break
            started = ahead or processes.start(turn.side, args.work, turn.name, place)
            after = order[i + 1] if args.ahead and i + 1 < len(order) else None
            ahead = processes.start(after.side, args.work, after.name, place, waits=True) if after else None
            note(document, turn, started, limit_of(turn, args))
            write(path, document)
    finally:
        for left in (started, ahead):
            if left is not None and left.process.returncode is None:
                left.process.kill()
    print(gpu_report.markdown(document))


def limit_of(turn: Turn, args: argparse.Namespace) -> float:
    return max(float(args.limit), gpu_workloads.LIMITS.get(turn.side.name, 0.0))


def begin(args: argparse.Namespace, order: list[Turn], document: dict[str, Any], place: Place) -> None:
    """The rows where the sides look for them, the models, the limits (the higher of those noted and those of now)."""
    args.work.mkdir(parents=True, exist_ok=True)
    for source in args.inputs.glob("*.jsonl"):
        shutil.copy(source, args.work / source.name)
    wanted = {"adapter" for t in order if t.side.options.get("lora")}
    wanted |= {"scorer" for t in order if t.workload.name == "reward"}
    options = {"sizes": args.models, "inputs": str(args.inputs), "device": args.device, "wanted": sorted(wanted)}
    now = processes.run(Side("begin", "ours", "ours", "gpu_begin", options), args.work, "begin", place, BEGIN)
    before = document.get("limits", {})
    for name in ("bf16_tflops", "tf32_tflops", "copy_gb_s"):
        now[name] = max(now[name], before.get(name, 0.0))
    document["limits"] = now
    document["machine"] = machine.describe(ROOT) | {"gpu": now.pop("gpu"), "driver": machine.driver()}
    if args.commit:
        document["machine"]["commit"] = args.commit


def turns(args: argparse.Namespace) -> list[Turn]:
    """All sides in their order: what matters most of every workload and model, then the rest."""
    settings = [Setting(model, args.device, args.quick) for model in args.models]
    each = [
        (i, Turn(f"{s.model}/{w.name}", s.model, w, side))
        for s in settings
        for w in gpu_workloads.chosen(s, args.only, args.sides)
        for i, side in enumerate(w.sides)
    ]
    return [turn for late in (False, True) for i, turn in each if (i >= WHOLE) is late]


def note(document: dict[str, Any], turn: Turn, started: Started, limit: float) -> None:
    """Waits for the side, says what came of it and puts it into the document."""
    workload, error, reports = turn.workload, None, []
    try:
        reports.append(processes.finish(started, limit))
    except Failed as err:
        error = str(err)
    made = measure.summary(workload, turn.side, reports, error)
    told = f"FAILED: {error}" if error else measure.shown(workload, made["rate"])
    walls = f" ({made['wall'][0]:.0f} s in all)" if reports else ""
    command.say(f"{turn.key}: {turn.side.name}: {told}{walls}")
    joined = document["results"].setdefault(
        turn.key, {"workload": workload.name, "model": turn.model, "sides": [], "losses": []}
    )
    if error is None or not figure(document, turn):  # a failure takes nobody's figure away
        kept = [s for s in joined["sides"] if s["name"] != turn.side.name]
        joined["sides"] = sorted([*kept, made], key=lambda s: place_of(turn, s["name"]))


def figure(document: dict[str, Any], turn: Turn) -> bool:
    """Whether the side's figure is there already."""
    sides: Iterator[dict[str, Any]] = iter(document["results"].get(turn.key, {}).get("sides", []))
    return any(s["name"] == turn.side.name and "rate" in s for s in sides)


def place_of(turn: Turn, name: str) -> int:
    """Where a side stands in its workload."""
    names = [s.name for s in gpu_workloads.workloads(Setting(turn.model, "cuda"))[turn.workload.name].sides]
    return names.index(name)


def write(path: Path, document: dict[str, Any]) -> None:
    command.write(path, document, gpu_report.markdown(document))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=Path, required=True, help="what gpu_inputs made")
    parser.add_argument("--work", type=Path, required=True, help="models, logs; best in memory")
    parser.add_argument("--models", default="0.5b,1.5b", help=f"some of {', '.join(SIZES)}")
    parser.add_argument("--only", help="some workloads, by name, in this order")
    parser.add_argument("--sides", help='parts of names, or "=" and a whole one: "ours;=TRL tuned;Liger"')
    parser.add_argument("--missing", action="store_true", help="only sides of which there is no figure yet")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that a side may take (default: 120)")
    parser.add_argument("--until", type=float, help="seconds after which no side begins")
    parser.add_argument("--name", default="gpu", help="of the results")
    parser.add_argument("--out", type=Path, default=command.RESULTS, help="where they go")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--commit", help="of the program, where git cannot tell")
    parser.add_argument(
        "--ahead",
        action=argparse.BooleanOptionalAction,
        help="the next side imports its libraries beside the one at work (default: on a GPU)",
    )
    parser.add_argument("--quick", action="store_true", help="a few short steps, to see that everything runs")
    args = parser.parse_args()
    args.models = args.models.split(",")
    if any(model not in SIZES for model in args.models):
        parser.error(f"--models: some of {', '.join(SIZES)}")
    if not (args.inputs / "tokenizer.json").exists():
        parser.error("--inputs: the directory that python -m benchmarks.speed.gpu_inputs made")
    args.ahead = args.device == "cuda" if args.ahead is None else args.ahead
    args.work, args.inputs = args.work.resolve(), args.inputs.resolve()
    return args


if __name__ == "__main__":
    main()
