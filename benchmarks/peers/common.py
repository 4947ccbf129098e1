"""What the peers' scripts have in common: how they are called, the clock of the steps, token ids in order, the result.

Every script is called with the directory of inputs, a file for its result and its options as JSON, and uses nothing of
this repository's program. On a GPU (option `device`) the clock waits until everything asked of it is done.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer, TrainerCallback


def called() -> tuple[Path, Path, dict[str, Any]]:
    work, result, options = sys.argv[1:]
    return Path(work), Path(result), json.loads(options)


def rows(path: Path, n: int | None = None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:n]]


def tokenizer(source: Path, model: Any) -> Any:
    made = AutoTokenizer.from_pretrained(source)
    if model.config.pad_token_id is not None:
        made.pad_token_id = model.config.pad_token_id
    return made


def now() -> float:
    """The time at which everything asked of a GPU, if this process has one, is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(TrainerCallback):
    """When every step ended. warm: the first steps, which are not timed."""

    def __init__(self, warm: int = 1) -> None:
        self.warm = warm
        self.ends: list[float] = []
        self.first: dict[str, float] = {}

    def on_step_end(self, *_, **__) -> None:
        self.ends.append(now())
        if torch.cuda.is_initialized() and not self.first:
            self.first = {"gpu_first_gb": torch.cuda.max_memory_allocated() / 2**30}

    @property
    def seconds(self) -> float:
        """Of the steps that are timed."""
        return self.ends[-1] - self.ends[self.warm - 1]

    def timing(self) -> dict[str, Any]:
        each = [b - a for a, b in itertools.pairwise(self.ends)]
        return {"seconds": self.seconds, "step_seconds": each, **self.first}


def warm(options: dict[str, Any]) -> int:
    return options.get("warm", 1)


def per_step(figures: list[torch.Tensor], accumulated: int, mean: bool) -> list[float]:
    """What was noted of every micro-batch, added up or averaged over the steps."""
    values = [float(x) for x in figures]
    steps = [values[i : i + accumulated] for i in range(0, len(values), accumulated)]
    return [sum(step) / (len(step) if mean else 1) for step in steps]


def fitting(options: dict[str, Any], train: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """What `train` reports with the largest micro-batch that fits: the one asked for, or on a GPU that has no memory
    for it a half, a quarter, ... of it. A step's other rows are accumulated."""
    micro = options.get("micro", options["batch"])
    while True:
        try:
            return train(micro) | {"micro": micro}
        except torch.OutOfMemoryError:
            if micro == 1:
                raise
        micro //= 2
        print(f"no memory: again with {micro} rows at once", flush=True)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


class Ordered:
    """A trainer that takes token ids as they are given, in their order."""

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset if dataset is None else dataset)


class Recorded(Ordered):
    """That keeps the loss of every micro-batch to all its digits, without waiting for it (one trainer at a time)."""

    losses: ClassVar[list[torch.Tensor]] = []

    def compute_loss(self, *args, **kwargs):
        out = super().compute_loss(*args, **kwargs)
        self.losses.append((out[0] if isinstance(out, tuple) else out).detach())
        return out


class Unprepared(Recorded):
    """Whose rows are token ids already."""

    def _prepare_dataset(self, dataset, *_, **__):
        return dataset


LIGER = {"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": False}}
"""Liger's kernels but for its loss: TRL's trainers do not take it, theirs never makes all logits either, and a reward
model has none."""


def settings(work: Path, options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """TRL's own settings but for the optimiser, which is ours, and what the options say."""
    return {
        "output_dir": str(work / "trl"),
        "max_steps": options["steps"],
        "learning_rate": options["lr"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "max_grad_norm": 1.0,
        "bf16": options["bf16"],
        "gradient_checkpointing": options["checkpointing"],
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": options.get("device", "cpu") == "cpu",
        "seed": 0,
        **(LIGER if options.get("liger") else {}),
    } | more


def weights(options: dict[str, Any]) -> torch.dtype:
    """Float32, from which autocast takes what it computes with; or what the options say."""
    return getattr(torch, options.get("weights", "float32"))


def accumulated(options: dict[str, Any], micro: int) -> dict[str, int]:
    """A step's batch in micro-batches."""
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": options["batch"] // micro}


def drawn(result: Path, amounts: list[int], seconds: list[float]) -> None:
    """Reports tokens by repetition. The first one warms up."""
    each = [a / s for a, s in zip(amounts, seconds, strict=True)]
    report(result, {"amount": {"tokens": sum(amounts[1:])}, "seconds": sum(seconds[1:]), "each": each})


def report(result: Path, made: dict[str, Any]) -> None:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if "trl" in sys.modules:
        versions["trl"] = sys.modules["trl"].__version__
    if torch.cuda.is_initialized():
        made["gpu_peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
        made["gpu_reserved_gb"] = torch.cuda.max_memory_reserved() / 2**30
    result.write_text(json.dumps(made | {"versions": versions}), encoding="utf-8")
