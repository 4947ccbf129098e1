"""Kills runs of the r1 recipe with SIGKILL at random instants, in all stages, and compares the results bit for bit.

    python benchmarks/kill_test.py [--kills 50] [--seed 0]

One run of a small version of the recipe is undisturbed. Other runs of it are killed repeatedly, at random instants,
and restarted until they finish. Each must end with the same bytes as the undisturbed one: every model, every data
file, every metric except times. Prints one line per kill and a verdict.
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
"""Overrides that shorten every stage of the recipe."""

SAVE_EVERY = 0.3
"""Seconds between checkpoints: short, so that every killed run makes progress."""


def child(recipe: str, overrides: list[str], out: str) -> None:
    """What `ladder run` does; the target of the process that is killed."""
    from ladder.pipeline import recipe as recipes
    from ladder.pipeline.run import run
    from ladder.tracking.console import Console

    loaded, document = recipes.load(recipe, overrides)
    run(loaded, document, Path(out), Console(quiet=True), save_every=SAVE_EVERY)


def start(recipe: str, overrides: list[str], out: Path) -> multiprocessing.process.BaseProcess:
    """Starts the run in a process forked from a server with all imports done, so that kills never hit the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ladder.commands.runs"])
    process = context.Process(target=child, args=(recipe, overrides, str(out)))
    process.start()
    return process


def finish(recipe: str, overrides: list[str], out: Path) -> float:
    """Runs to the end; returns the seconds taken. Raises RuntimeError when the run fails."""
    begun = time.monotonic()
    process = start(recipe, overrides, out)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the run ended with {process.exitcode}")
    return time.monotonic() - begun


def killed(recipe: str, overrides: list[str], out: Path, after: float) -> tuple[bool, str]:
    """Starts the run and kills it `after` so many seconds; returns (whether it was still running, its stage)."""
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
    """The name of the stage that a run is in, or "start"."""
    stages = [p.parent.name for p in sorted(out.glob("*/stage.json"), key=lambda p: p.stat().st_mtime)]
    return stages[-1] if stages else "start"


def fingerprint(out: Path) -> dict[str, str]:
    """Hashes of everything that the stages wrote, and of the metrics without times and rates."""
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
    """One run, killed at most `most` times; returns the stages in which it was killed."""
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
