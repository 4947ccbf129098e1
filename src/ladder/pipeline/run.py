"""A run: the stages of a recipe, one after another, in a directory of its own.

What is done is not done again: a stage whose identity (`identity.py`) is the one on disk, and whose result still has
the hashes it was written with, is kept; one that was interrupted goes on from its newest checkpoint; one that has
become another is moved aside into `.stale/`, and comes back when the recipe does. Ctrl-C and SIGTERM end the run
between two steps, with everything saved.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.markup import escape

from ladder.base import files
from ladder.base.config import Document
from ladder.base.errors import UserError
from ladder.base.files import sha256, write_json
from ladder.base.jsonl import read_lines
from ladder.kernels import dispatch, library
from ladder.pipeline import evaluate, gates
from ladder.pipeline.build import models
from ladder.pipeline.lineage import read_stage
from ladder.pipeline.plan import Planned, damaged, plan, prepare
from ladder.pipeline.recipe import Recipe
from ladder.pipeline.stage import Context, Interrupted, StageConfig, Stop
from ladder.tracking import trackers
from ladder.tracking.console import Console
from ladder.tracking.log import RunLog


def run(
    recipe: Recipe,
    document: Document,
    out: Path,
    console: Console,
    *,
    until: str | None = None,
    save_every: float | None = None,
) -> Path:
    """Runs what is missing, up to and with the stage `until`, and returns the run's directory.

    Raises UserError, Interrupted.
    """
    wanted = recipe.first(until)
    if save_every is not None:
        recipe = recipe.model_copy(update={"save_every": save_every})
    planned = plan(recipe, document, out)
    prepare(recipe, document, [one for one in planned[:wanted] if one.status != "done"])
    sinks = trackers.check(recipe.trackers)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise files.disk_error(err, out, 0) from err
    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
    torch.set_float32_matmul_precision(recipe.engine.matmul)
    if reason := library.lacking() if recipe.model.device == "cpu" else dispatch.untiled():
        console.say(f"[yellow]slower than it could be:[/yellow] {escape(reason)}")
    with locked(out), interruptible(console) as stop:
        write_recipe(recipe, planned, out / "recipe.yaml")
        parents: dict[str, Path] = {}
        done: dict[str, StageConfig] = {}
        summaries: dict[str, Any] = {}
        for number, one in enumerate(planned[:wanted], 1):
            console.say(f"[bold]{number}/{wanted} {one.name}[/bold] ({one.config.kind})")
            directory = out / one.name
            if one.status == "done":
                console.say(f"  done before ({one.why})")
            else:
                try:
                    _run_stage(recipe, one, directory, parents, done, console, stop, sinks)
                except OSError as err:  # a log's line, for which there was no room
                    if err.errno not in files.FULL:
                        raise
                    raise files.disk_error(err, directory, 0) from err
            parents[one.name], done[one.name] = directory, one.config
            summaries[one.name] = files.read_json(directory / "summary.json")
            evaluate.show(console, directory, summaries[one.name])
            later = {p.name: out / p.name / "summary.json" for p in planned[number:] if p.status == "done"}
            write_summary(recipe, summaries | {n: files.read_json(p) for n, p in later.items()}, out)
            gates.check(one.name, one.config.require, summaries[one.name])
    return out


def _run_stage(
    recipe: Recipe,
    one: Planned,
    directory: Path,
    parents: dict[str, Path],
    done: dict[str, StageConfig],
    console: Console,
    stop: Stop,
    sinks: Sequence[trackers.Maker],
) -> None:
    """One stage from where it stands to its end."""
    directory = _make_room(one, directory, console)
    found = read_stage(directory)
    if found is None:
        found = {"name": one.name, "key": one.key, "status": "running", **one.description, "started": time.time()}
        write_json(directory / "stage.json", found)
    before = found.get("trained_seconds", 0.0)
    made = trackers.open_all(sinks, directory, recipe.name, one.name, console.say)
    log = RunLog(directory, made, console.say)
    base = base_of(recipe, one.config, done, parents)
    ctx = Context(one.name, directory, recipe, parents, base, log, console, stop, before)
    try:
        extra = found.get("trained")
        if not extra or one.config.makes == "figures":
            extra = one.config.run(ctx)
            found |= {"trained": extra, "trained_seconds": ctx.seconds}
            write_json(directory / "stage.json", found)
        summary = dict(extra)
        if one.config.makes == "model" and recipe.eval is not None:
            last = _last_step(directory)
            log.cut_evals(last)
            summary |= evaluate.evaluate_stage(ctx, models.load(recipe, str(directory / "model")), last)
        summary["seconds"] = round(ctx.seconds, 1)
        write_json(directory / "summary.json", summary)
        found |= {"status": "done", "seconds": summary["seconds"], "finished": time.time()}
        found["measured"] = one.measured
        if one.config.makes != "figures":
            found["output"] = sha256(directory / ("data.jsonl" if one.config.makes == "data" else "model"))
        write_json(directory / "stage.json", found)
    finally:
        log.close()


def _last_step(directory: Path) -> int:
    steps = read_lines(directory / "metrics.jsonl")
    return int(steps[-1]["step"]) if steps else 0


def base_of(recipe: Recipe, config: StageConfig, done: dict[str, StageConfig], parents: dict[str, Path]) -> str:
    """What the chain of models under a stage started from, once pretrained."""
    at = config.from_
    while at is not None:
        if done[at].begins:
            return str(parents[at] / "model")
        at = done[at].from_
    return recipe.model.source


def _make_room(one: Planned, directory: Path, console: Console) -> Path:
    """Moves aside what is there of another identity, and brings back what once was of this one."""
    stale = directory.parent / ".stale"
    found = read_stage(directory)
    if one.status == "stale" and found is not None:
        console.say(f"  {one.why}: what was there moves to {stale.name}/")
        stale.mkdir(exist_ok=True)
        there = stale / f"{one.name}-{found['key'][:12]}"
        shutil.rmtree(there, ignore_errors=True)
        directory.rename(there)
    elif one.status == "new" and directory.exists():
        shutil.rmtree(directory)
    kept = stale / f"{one.name}-{one.key[:12]}"
    if not directory.exists() and kept.exists() and not _broken(kept, one.config):
        console.say("  comes back from an earlier run of the same recipe")
        kept.rename(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _broken(kept: Path, config: StageConfig) -> bool:
    """Whether what was moved aside is done and no longer what it was."""
    found = read_stage(kept)
    return found is None or (found["status"] == "done" and damaged(kept, found, config) is not None)


def write_recipe(recipe: Recipe, planned: Sequence[Planned], path: Path) -> None:
    """The recipe with every field of every stage spelled out."""
    data = recipe.model_dump(mode="json", by_alias=True)
    data["stages"] = {p.name: p.config.model_dump(mode="json", by_alias=True) for p in planned}
    files.write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def write_summary(recipe: Recipe, stages: dict[str, Any], out: Path) -> None:
    seconds = round(sum(s["seconds"] for s in stages.values()), 1)
    write_json(out / "summary.json", {"stages": stages, "seed": recipe.seed, "seconds": seconds})


# ---------------------------------------------------------------- the surroundings


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One run at a time in a directory. The lock goes with the process, however it ends."""
    with (out / ".lock").open("a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            f.seek(0)
            raise UserError(
                f"another run (process {f.read().strip() or '?'}) is at work in this directory",
                file=out,
                hint="wait for it, or choose another place with --out",
            ) from err
        f.seek(0)
        f.truncate()
        f.write(str(os.getpid()))
        f.flush()
        yield


@contextmanager
def interruptible(console: Console) -> Iterator[Stop]:
    """SIGINT and SIGTERM ask for a stop between steps; a second SIGINT stops at once (what was saved stays)."""
    stop = Stop()

    def asked(signum: int, _: object) -> None:
        if stop and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signum = signum
        console.say("\n  stopping after this step (once more to stop at once)")

    before = {s: signal.signal(s, asked) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["Interrupted", "Planned", "plan", "run"]
