"""Kill -9 at random instants, across all stages of the r1 recipe, and compare: weights bit for bit.

    python benchmarks/kill_test.py [--kills 50] [--seed 0]

A run of a small version of the recipe is left alone; then others are killed again and again, at instants drawn at
random, and started anew until they are through. Each result must have the same bytes: every model, every harvest,
every metric but the times. Prints one line a kill and a verdict.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from ladder.base.files import read_json, sha256
from ladder.base.jsonl import read_lines

SMALL = [
    "pretrain.data.web.documents=6000",
    "r1_zero.steps=4",
    "r1_zero.prompts_per_step=8",
    "r1_zero.group_size=8",
    "harvest.num_prompts=384",
    "harvest.group_size=4",
    "harvest.filters=[]",
    "harvest.at_least=0",
    "sft.epochs=1",
    "rl.steps=4",
    "rl.prompts_per_step=8",
    "rl.group_size=8",
    "eval.sets.easy.n=32",
    "eval.sets.hard.n=32",
]
"""The whole recipe, each stage cut short."""

SAVE_EVERY = 0.3
"""Seconds between checkpoints: every killed run must get somewhere."""


def child(recipe: str, overrides: list[str], out: str) -> None:
    """The whole of `ladder run`, in a process of its own."""
    from ladder.pipeline import recipe as recipes
    from ladder.pipeline.run import run
    from ladder.tracking.console import Console

    loaded, document = recipes.load(recipe, overrides)
    run(loaded, document, Path(out), Console(quiet=True), save_every=SAVE_EVERY)


def start(recipe: str, overrides: list[str], out: Path) -> multiprocessing.process.BaseProcess:
    """A server that has imported everything already forks it, so that kills hit the work and not the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ladder.commands.runs"])
    process = context.Process(target=child, args=(recipe, overrides, str(out)))
    process.start()
    return process


def finish(recipe: str, overrides: list[str], out: Path) -> float:
    """Runs to the end; returns the seconds. Raises RuntimeError when the run fails."""
    begun = time.monotonic()
    process = start(recipe, overrides, out)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the run ended with {process.exitcode}")
    return time.monotonic() - begun


def killed(recipe: str, overrides: list[str], out: Path, after: float) -> tuple[bool, str]:
    """Starts the run and kills it `after` so many seconds; (whether it was still at work, where it stood)."""
    process = start(recipe, overrides, out)
    process.join(after)
    alive = process.is_alive()
    where = where_it_stands(out)
    if alive:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    elif process.exitcode != 0:
        raise RuntimeError(f"the run ended with {process.exitcode} by itself")
    return alive, where


def where_it_stands(out: Path) -> str:
    """The stage a run is in, for people."""
    stages = [p.parent.name for p in sorted(out.glob("*/stage.json"), key=lambda p: p.stat().st_mtime)]
    return stages[-1] if stages else "start"


def fingerprint(out: Path) -> dict[str, str]:
    """Hashes of everything that training made, and the metrics without what the clock had a part in."""
    found: dict[str, str] = {}
    for stage in sorted(p.parent for p in out.glob("*/stage.json")):
        assert read_json(stage / "stage.json")["status"] == "done", stage
        for path in [stage / "data.jsonl", *(stage / "model").glob("*.safetensors"), stage / "samples.json"]:
            if path.exists():
                found[f"{stage.name}/{path.name}"] = sha256(path)
        for name in ("metrics", "rollouts", "evals"):
            rows = read_lines(stage / f"{name}.jsonl")
            timeless = [{k: v for k, v in r.items() if not _timed(k)} for r in rows]
            found[f"{stage.name}/{name}"] = str(timeless)
    return found


def _timed(name: str) -> bool:
    return name == "time" or name.startswith("seconds") or name.endswith("tokens_per_s")


def differences(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def trial(recipe: str, overrides: list[str], out: Path, r: random.Random, mean: float, most: int) -> list[str]:
    """One run, killed at most so many times; the places where it was."""
    places: list[str] = []
    while len(places) < most:
        alive, where = killed(recipe, overrides, out, r.expovariate(1 / mean))
        if not alive:
            return places
        places.append(where)
    finish(recipe, overrides, out)
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", default="r1")
    args = parser.parse_args()
    r = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as root:
        seconds = finish(args.recipe, SMALL, Path(root) / "undisturbed")
        wanted = fingerprint(Path(root) / "undisturbed")
        print(f"undisturbed: {seconds:.1f} s, {len(wanted)} results")
        done, runs, places = 0, 0, {}
        while done < args.kills:
            runs += 1
            out = Path(root) / f"run{runs}"
            hit = trial(args.recipe, SMALL, out, r, seconds / 8, args.kills - done)
            done += len(hit)
            for place in hit:
                places[place] = places.get(place, 0) + 1
            wrong = differences(wanted, fingerprint(out))
            said = wrong or "identical"
            print(f"run {runs}: killed {len(hit)} times ({', '.join(hit)}): {said}", flush=True)
            if wrong:
                raise SystemExit(1)
    print(f"{done} kills over {runs} runs ({places}): every result bit-identical")


if __name__ == "__main__":
    main()
