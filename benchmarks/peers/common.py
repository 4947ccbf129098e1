"""What the peers' scripts have in common: how they are called, the clock of the steps, token ids in order, the result.

Every script is called with the directory of inputs, a file for its result and its options as JSON, and uses nothing of
this repository's program.
"""

from __future__ import annotations

import json
import sys
import time
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


class Clock(TrainerCallback):
    """When every step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_, **__) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of all steps but the first, which warms up."""
        return self.ends[-1] - self.ends[0]


class Ordered:
    """A trainer that takes token ids as they are given, in their order."""

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset if dataset is None else dataset)


class Recorded(Ordered):
    """That keeps the loss of every step to all its digits (one trainer a process)."""

    losses: ClassVar[list[float]] = []

    def compute_loss(self, *args, **kwargs):
        out = super().compute_loss(*args, **kwargs)
        self.losses.append(float((out[0] if isinstance(out, tuple) else out).detach()))
        return out


class Unprepared(Recorded):
    """Whose rows are token ids already."""

    def _prepare_dataset(self, dataset, *_, **__):
        return dataset


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
        "use_cpu": True,
        "seed": 0,
    } | more


def report(result: Path, made: dict[str, Any]) -> None:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if "trl" in sys.modules:
        versions["trl"] = sys.modules["trl"].__version__
    result.write_text(json.dumps(made | {"versions": versions}), encoding="utf-8")
