"""What our sides have in common: the model of the work directory, an engine, and the clock of the steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ladder.engine.engine import Engine
from ladder.engine.lora import LoRA, adapter_off, attach
from ladder.engine.model import LoadedModel, load_model
from ladder.engine.optim import Optim
from ladder.types import Loss, Signal, Unit

ADAPTER = LoRA(rank=16, alpha=32, targets="all-linear")
SEED = 0
MATMUL = {"fp32": "highest", "bf16": "medium"}
"""Ours keeps float32 tensors; products alone are computed in shorter numbers (`matmul` in a recipe)."""


def optimiser(lr: float) -> Optim:
    """As Hugging Face's trainer has it, the schedule constant."""
    return Optim(lr=lr, betas=(0.9, 0.999), weight_decay=0.0, clip=1.0)


def load(work: Path, options: dict[str, Any], *, scalar: bool = False) -> LoadedModel:
    """The model named in the options, with an adapter if they ask for one."""
    torch.set_float32_matmul_precision(MATMUL[options["precision"]])
    loaded = load_model(str(work / options["model"]), scalar="trained" if scalar else False)
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
        budget=options.get("budget", 8192),
        workers=options.get("workers", 1),
        without=without,
    )


class InOrder:
    """Units as they stand, `batch` a step (`types.Signal`)."""

    def __init__(self, units: Sequence[Unit], batch: int) -> None:
        self.units, self.batch = units, batch

    def batches(self) -> Any:
        for i in range(0, len(self.units), self.batch):
            yield list(self.units[i : i + self.batch])

    def observe(self, weights: Any, version: int) -> None: ...
    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


def steps(signal: Signal, engine: Engine, loss: Loss, n: int) -> list[dict[str, float]]:
    """Trains n steps; each step's figures, with "ended", the time when it was over."""
    from ladder.train import Learner, train

    rows: list[dict[str, float]] = []

    def on_step(step: int, figures: dict[str, float]) -> bool:
        rows.append(figures | {"ended": time.perf_counter()})
        return False

    train(signal, [Learner(engine, loss)], steps=n, on_step=on_step)
    return rows


def seconds(rows: Sequence[dict[str, float]]) -> float:
    """Of all steps but the first, which pays for warming up."""
    return rows[-1]["ended"] - rows[0]["ended"]


def parameters(loaded: LoadedModel) -> int:
    """Of the model without its adapter, a matrix that is used twice counted once."""
    return sum(p.numel() for name, p in loaded.model.named_parameters() if "lora_" not in name)
