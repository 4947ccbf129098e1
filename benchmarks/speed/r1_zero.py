"""R1-Zero in the embedded world: seconds of training until 90% of the easy problems are right, from one base.

Same prompts in the same order, 48 a step with 16 answers each, two optimiser steps, the recipe's learning rate and
schedule, the same judge of answers. Both sides leave a checkpoint every few steps, outside their clock, and `judge`
(our evaluation, at temperature 1) measures them all afterwards; between two checkpoints the curve is a line.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.speed import ours, rows
from benchmarks.speed.workload import Side, Workload, own, trl

from ladder.contract.rollouts import Sampling, Task
from ladder.data.chat import encode_prompt
from ladder.decoding.sampler import NativeSampler
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.evals.accuracy import evaluate
from ladder.losses import PolicyClip
from ladder.models.load import load_model, save_model
from ladder.rollout.collect import Collector
from ladder.signals.prompts import Prompts
from ladder.signals.rewards import Rewards
from ladder.tasks.chain import answers
from ladder.tasks.chain.source import Chain
from ladder.train import Learner, train

GOAL = 0.9
PROBLEMS = 1024
OPTIONS = {
    "model": "chain",
    "rows": "chain_prompts.jsonl",
    "lr": 1.1e-3,
    "betas": [0.9, 0.95],
    "warmup": 0.15,
    "final": 0.1,
    "prompts": 48,
    "group": 16,
    "minibatches": 2,
    "tokens": 60,
    "steps": 44,
    "every": 2,
    "beta": 0.0,
}


def prepare(work: Path) -> None:
    """The base, out of the recipe's own first stage, and the prompts in the recipe's order."""
    if (work / OPTIONS["rows"]).exists():
        return
    made = work / "r1"
    command = [sys.executable, "-m", "ladder.cli", "run", "r1", "--until", "pretrain", "--out", str(made), "--quiet"]
    print("pretraining the base of R1-Zero ...", flush=True)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    loaded = load_model(str(made / "pretrain" / "model"))
    save_model(loaded, work / OPTIONS["model"])
    dealt = Prompts(Chain(steps=(3, 6)).tasks("train"), OPTIONS["prompts"], ours.SEED)
    tasks = [task for step in range(OPTIONS["steps"]) for task in dealt(step)]
    told = ({"ids": encode_prompt(loaded.tokenizer, t.prompt), "answer": t.answer} for t in tasks)
    rows.write(work / OPTIONS["rows"], told)


def run(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    loaded = ours.load(work, options)
    workers = ours.workers(options)
    asked = rows.read(work / options["rows"])
    tasks = [Task(str(i), str(i), row["answer"]) for i, row in enumerate(asked)]
    sampler = NativeSampler(loaded.model, loaded.tokenizer, eos=loaded.eos, slots=512, workers=workers)
    engine = Engine(
        loaded.model, optimiser(options), workers=workers, total_steps=options["steps"] * options["minibatches"]
    )
    signal = Rewards(
        prompts=lambda step: tasks[step * options["prompts"] : (step + 1) * options["prompts"]],
        collect=Collector(
            sampler, lambda i: asked[int(i)]["ids"], options["group"], Sampling(options["tokens"]), ours.SEED, "r1"
        ),
        reward=answers.correct,
        load=sampler.load,
    )
    checkpoints: list[dict[str, Any]] = []
    begun, saving = time.perf_counter(), 0.0

    def on_step(step: int, figures: dict[str, float]) -> bool:
        nonlocal saving
        if step % options["every"] == 0:
            now = time.perf_counter()
            path = work / "runs" / "r1_zero_ours" / f"{step:03d}"
            save_model(loaded, path)
            checkpoints.append({"step": step, "seconds": now - begun - saving, "path": str(path)})
            saving += time.perf_counter() - now
        return False

    learner = Learner(engine, PolicyClip(), minibatches=options["minibatches"])
    train(signal, [learner], steps=options["steps"], seed=ours.SEED, on_step=on_step)
    return {"checkpoints": checkpoints, "amount": {"runs": 1}, "seconds": checkpoints[-1]["seconds"]}


def optimiser(options: dict[str, Any]) -> Optim:
    first, second = options["betas"]
    return Optim(
        lr=options["lr"],
        betas=(first, second),
        warmup=options["warmup"],
        schedule="linear",
        final=options["final"],
    )


def peers(**options: Any) -> list[Side]:
    script = "trl_r1_zero.py"
    return [
        trl("TRL tuned", "tuned", script, checkpointing=False, **options),
        trl("TRL default in fp32", "default", script, tune=False, checkpointing=True, **options),
        trl("TRL tuned", "other", script, bf16=True, checkpointing=False, **options),
    ]


WORKLOADS = [
    Workload(
        "r1_zero",
        "R1-Zero to 90% of the easy problems",
        "runs",
        [*own("r1_zero", precisions=("fp32",), **OPTIONS), *peers(**OPTIONS)],
        inverse=True,
        at_least={"tuned": 5.0},
        judge="r1_judge",
    )
]


# ---------------------------------------------------------------- how good the checkpoints are


def curve(checkpoints: list[dict[str, Any]], base: str) -> list[dict[str, float]]:
    """Accuracy over the seconds of training, beginning with the base."""
    every = [{"step": 0, "seconds": 0.0, "path": base}, *checkpoints]
    return [{"step": c["step"], "seconds": c["seconds"], "accuracy": accuracy(c["path"])} for c in every]


def accuracy(path: str) -> float:
    loaded = load_model(path)
    tokenizer = loaded.tokenizer
    sampler = NativeSampler(loaded.model, tokenizer, eos=loaded.eos, slots=512)
    tasks = Chain(steps=(3, 6)).tasks("test", PROBLEMS)
    found = evaluate(sampler, tasks, answers.correct, lambda p: encode_prompt(tokenizer, p), Sampling(80))
    return found.accuracy


def reached(points: list[dict[str, float]], goal: float = GOAL) -> float | None:
    """Seconds at which the curve first meets the goal; None if it never does."""
    for before, after in itertools.pairwise(points):
        if after["accuracy"] >= goal:
            share = (goal - before["accuracy"]) / (after["accuracy"] - before["accuracy"])
            return before["seconds"] + share * (after["seconds"] - before["seconds"])
    return None
