"""What our sides have in common: the model of the work directory, an engine, and the clock of the steps."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import device

from ladder.contract.training import Loss, Signal, Unit
from ladder.decoding.sampler import NativeSampler
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.models.load import LoadedModel, load_model
from ladder.models.lora import LoRA, adapter_off, attach
from ladder.signals.examples import Examples
from ladder.train import Learner, train

ADAPTER = LoRA(rank=16, alpha=32, targets="all-linear")
SEED = 0
SMALL = ("tiny", "chain")
MATMUL = {"fp32": "highest", "bf16": "medium"}
"""Our precisions in torch's words, as a recipe's engine.matmul has them."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The sampler's, as a recipe's sampler.dtype has them."""


def optimiser(lr: float) -> Optim:
    """As Hugging Face's trainer has it, the schedule constant."""
    return Optim(lr=lr, betas=(0.9, 0.999), weight_decay=0.0, clip=1.0)


def load(work: Path, options: dict[str, Any], *, scalar: bool = False) -> LoadedModel:
    """The model named in the options, with an adapter if they ask for one, on the device and in the type they name."""
    torch.set_float32_matmul_precision(MATMUL[options["precision"] if rounds(options) else "fp32"])
    loaded = load_model(
        str(work / options["model"]),
        dtype=options.get("weights", "float32"),
        device=device.name(options),
        scalar="trained" if scalar else False,
    )
    if options.get("lora"):
        loaded.model = attach(loaded.model, ADAPTER, seed=SEED)
    return loaded


def engine(loaded: LoadedModel, options: dict[str, Any]) -> Engine:
    """As a recipe makes it, with its defaults."""
    model: Any = loaded.model
    without = (lambda: adapter_off(model)) if options.get("lora") else None
    return Engine(
        model,
        optimiser(options["lr"]),
        budget=options.get("budget"),  # a GPU is told its own (gpu_workloads.py)
        workers=workers(options),
        without=without,
    )


def sampler(loaded: LoadedModel, options: dict[str, Any], eos: Sequence[int], **more: Any) -> NativeSampler:
    dtype = DTYPES[options["precision"]] if rounds(options) else torch.float32
    return NativeSampler(loaded.model, loaded.tokenizer, eos=eos, workers=workers(options), dtype=dtype, **more)


def rounds(options: dict[str, Any]) -> bool:
    """Whether the sampler is told to compute in a shorter type than the weights have. Weights that are short already
    are decoded as they are."""
    return options["precision"] != "fp32" and options.get("weights", "float32") == "float32"


def workers(options: dict[str, Any]) -> int:
    """Threads side by side: as many as there are for a small model, whose operators are then left one each."""
    if options["model"] not in SMALL:
        return 1
    wanted = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(1)
    return wanted


def in_order(units: Sequence[Unit], batch: int) -> Examples:
    """Units as they stand, `batch` a step, over and over. They are a whole number of steps."""
    return Examples(units, batch, epochs=None, order=lambda _: range(len(units)))


def batches(units: Sequence[Any], batch: int) -> Iterator[list[Any]]:
    """Of equal size, without end. The units are a whole number of them."""
    while True:
        for i in range(0, len(units), batch):
            yield list(units[i : i + batch])


def warm(options: dict[str, Any]) -> int:
    """How many steps are not timed: they warm up."""
    return options.get("warm", 1)


def timed(units: Sequence[Any], options: dict[str, Any]) -> list[Any]:
    """The units of the steps that are timed."""
    steps = itertools.islice(batches(units, options["batch"]), warm(options), options["steps"])
    return [unit for step in steps for unit in step]


def steps(signal: Signal, engine: Engine, loss: Loss, n: int) -> list[dict[str, float]]:
    """Trains n steps; each step's figures, with "ended", the time when it was over."""
    rows: list[dict[str, float]] = []

    def on_step(step: int, figures: dict[str, float]) -> bool:
        rows.append(figures | {"ended": device.now(engine.device)} | device.held(engine.device))
        return False

    train(signal, [Learner(engine, loss)], steps=n, on_step=on_step)
    return rows


def timing(rows: Sequence[dict[str, float]], options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the steps that are timed, and of each; what the first took of a GPU's memory."""
    ends = [row["ended"] for row in rows]
    each = [b - a for a, b in itertools.pairwise(ends)]
    first = {"gpu_first_gb": rows[0]["gpu_gb"]} if "gpu_gb" in rows[0] else {}
    return {"seconds": ends[-1] - ends[warm(options) - 1], "step_seconds": each, **first}


def parameters(loaded: LoadedModel) -> int:
    """Of the model without its adapter, a matrix that is used twice counted once."""
    return sum(p.numel() for name, p in loaded.model.named_parameters() if "lora_" not in name)
