"""A run: the stages of a recipe, one after another, in one directory.

A finished stage is not run again: if its identity (`identity.py`) equals the one on disk and its result still has the
recorded hash, the result is kept. An interrupted stage resumes from its newest checkpoint. A stage whose identity has
changed is moved into `.stale/`, and is restored when a later recipe has the same identity again. Ctrl-C and SIGTERM end
the run between two steps, with all state saved.
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
from ladder.base.files import write_json
from ladder.base.jsonl import read_lines
from ladder.kernels import dispatch, library
from ladder.pipeline import evaluate, gates
from ladder.pipeline.build import models
from ladder.pipeline.lineage import read_stage
from ladder.pipeline.plan import Planned, plan, prepare
from ladder.pipeline.recipe import Recipe
from ladder.pipeline.stage import Context, Interrupted, StageConfig, StopRequest
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
    """Runs the stages that are not done, up to and including the stage `until`, and returns the run's directory.

    save_every: replaces the recipe's. Raises UserError, Interrupted.
    """
    num_stages = recipe.first(until)
    if save_every is not None:
        recipe = recipe.model_copy(update={"save_every": save_every})
    planned = plan(recipe, document, out)
    prepare(recipe, document, [stage for stage in planned[:num_stages] if stage.status != "done"])
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
        for number, stage in enumerate(planned[:num_stages], 1):
            console.say(f"[bold]{number}/{num_stages} {stage.name}[/bold] ({stage.config.kind})")
            directory = out / stage.name
            if stage.status == "done":
                console.say(f"  done before ({stage.why})")
            else:
                try:
                    _run_stage(recipe, stage, directory, parents, done, console, stop, sinks)
                except OSError as err:  # the disk is full: a line of a log could not be written
                    if err.errno not in files.FULL:
                        raise
                    raise files.disk_error(err, directory, 0) from err
            parents[stage.name], done[stage.name] = directory, stage.config
            summaries[stage.name] = files.read_json(directory / "summary.json")
            evaluate.show(console, directory, summaries[stage.name])
            later = {p.name: out / p.name / "summary.json" for p in planned[number:] if p.status == "done"}
            write_summary(recipe, summaries | {n: files.read_json(p) for n, p in later.items()}, out)
            gates.check(stage.name, stage.config.require, summaries[stage.name])
    return out


def _run_stage(
    recipe: Recipe,
    stage: Planned,
    directory: Path,
    parents: dict[str, Path],
    done: dict[str, StageConfig],
    console: Console,
    stop: StopRequest,
    sinks: Sequence[trackers.Maker],
) -> None:
    """Runs one stage from its last saved state to its end: training, evaluation, summary, record."""
    directory = _prepare_directory(stage, directory, console)
    record = read_stage(directory)
    if record is None:
        record = {"name": stage.name, "key": stage.key, "status": "running", **stage.description}
        record["started"] = time.time()
        write_json(directory / "stage.json", record)
    before = record.get("trained_seconds", 0.0)
    stage_trackers = trackers.open_all(sinks, directory, recipe.name, stage.name, console.say)
    log = RunLog(directory, stage_trackers, console.say)
    base = base_of(recipe, stage.config, done, parents)
    ctx = Context(stage.name, directory, recipe, parents, base, log, console, stop, before)
    try:
        figures = record.get("trained")
        if not figures or stage.config.artifact.measures:
            figures = stage.config.run(ctx)
            record |= {"trained": figures, "trained_seconds": ctx.seconds}
            write_json(directory / "stage.json", record)
        summary = dict(figures)
        if stage.config.artifact.evaluated and recipe.eval is not None:
            last = _last_step(directory)
            log.cut_evals(last)
            summary |= evaluate.evaluate_stage(ctx, models.load(recipe, str(directory / "model")), last)
        summary["seconds"] = round(ctx.seconds, 1)
        write_json(directory / "summary.json", summary)
        record |= {"status": "done", "seconds": summary["seconds"], "finished": time.time()}
        record["measured"] = stage.measured
        output = stage.config.artifact.digest(directory)
        record |= {} if output is None else {"output": output}
        write_json(directory / "stage.json", record)
    finally:
        log.close()


def _last_step(directory: Path) -> int:
    """The last training step in the stage's metrics; 0 without any."""
    steps = read_lines(directory / "metrics.jsonl")
    return int(steps[-1]["step"]) if steps else 0


def base_of(recipe: Recipe, config: StageConfig, done: dict[str, StageConfig], parents: dict[str, Path]) -> str:
    """The source of the base model that a stage's model descends from: the model of the run's pretraining stage, or
    the recipe's model."""
    ancestor = config.from_
    while ancestor is not None:
        if done[ancestor].begins:
            return str(parents[ancestor] / "model")
        ancestor = done[ancestor].from_
    return recipe.model.source


def _prepare_directory(stage: Planned, directory: Path, console: Console) -> Path:
    """Moves a result of another identity into `.stale/`, and restores an earlier result of this identity from there."""
    stale = directory.parent / ".stale"
    record = read_stage(directory)
    if stage.status == "stale" and record is not None:
        console.say(f"  {stage.why}: the earlier result is moved to {stale.name}/")
        stale.mkdir(exist_ok=True)
        target = stale / f"{stage.name}-{record['key'][:12]}"
        shutil.rmtree(target, ignore_errors=True)
        directory.rename(target)
    elif stage.status == "new" and directory.exists():
        shutil.rmtree(directory)
    earlier = stale / f"{stage.name}-{stage.key[:12]}"
    if not directory.exists() and earlier.exists() and not _is_damaged(earlier, stage.config):
        console.say(f"  restored from {stale.name}/: an earlier run of the same recipe")
        earlier.rename(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _is_damaged(directory: Path, config: StageConfig) -> bool:
    """Whether a stage's directory has no record, or is marked as done while its result is missing or has changed."""
    record = read_stage(directory)
    return record is None or (record["status"] == "done" and config.artifact.damage(directory, record) is not None)


def write_recipe(recipe: Recipe, planned: Sequence[Planned], path: Path) -> None:
    """Writes the resolved recipe: every field of every stage, defaults included."""
    data = recipe.model_dump(mode="json", by_alias=True)
    data["stages"] = {p.name: p.config.model_dump(mode="json", by_alias=True) for p in planned}
    files.write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def write_summary(recipe: Recipe, stages: dict[str, Any], out: Path) -> None:
    seconds = round(sum(s["seconds"] for s in stages.values()), 1)
    write_json(out / "summary.json", {"stages": stages, "seed": recipe.seed, "seconds": seconds})


# ---------------------------------------------------------------- the surroundings


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Locks the directory, so that only one run at a time writes to it. The operating system releases the lock when the
    process ends in any way. Raises UserError if another run holds it."""
    with (out / ".lock").open("a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            f.seek(0)
            raise UserError(
                f"another run (process {f.read().strip() or '?'}) is using this directory",
                file=out,
                hint="wait for it, or choose another directory with --out",
            ) from err
        f.seek(0)
        f.truncate()
        f.write(str(os.getpid()))
        f.flush()
        yield


@contextmanager
def interruptible(console: Console) -> Iterator[StopRequest]:
    """SIGINT and SIGTERM request a stop between two steps; a second SIGINT stops at once (what was saved is kept)."""
    stop = StopRequest()

    def on_signal(signum: int, _: object) -> None:
        if stop and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signum = signum
        console.say("\n  stopping after this step (press Ctrl-C again to stop at once)")

    handlers = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


__all__ = ["Interrupted", "Planned", "plan", "run"]
