"""TRL's side of preferences_real.py: the same token ids, order, first weights, optimiser and number of steps.

    .venv-peers/bin/python benchmarks/peers/trl_preferences.py WORK rm full

TRL's own settings but for: no half precision and no gradient checkpointing (both slower on a CPU), no shuffling, and
token ids as given instead of text.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import ClassVar

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

RATES = {("rm", "full"): 1e-5, ("rm", "lora"): 1e-4, ("dpo", "full"): 5e-6, ("dpo", "lora"): 5e-5}
BATCH = 4


class Clock(TrainerCallback):
    """The seconds of every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.begun = 0.0

    def on_step_begin(self, *_, **__) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, *_, **__) -> None:
        self.rows.append({"seconds": time.perf_counter() - self.begun})


class Ordered:
    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset if dataset is None else dataset)

    def _prepare_dataset(self, dataset, *_, **__):
        return dataset


def exact(cls):
    """The trainer, with token ids in order and the loss of every step to all its digits."""

    class Exact(Ordered, cls):
        losses: ClassVar[list[float]] = []

        def compute_loss(self, *args, **kwargs):
            out = super().compute_loss(*args, **kwargs)
            loss = out[0] if isinstance(out, tuple) else out
            type(self).losses.append(float(loss.detach()))
            return out

    return Exact


def main(work: Path, kind: str, weights: str) -> None:
    torch.set_num_threads(1)
    scalar = kind == "rm"
    source = work / ("scorer" if scalar else "policy")
    loader = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    model = loader.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if model.config.pad_token_id is not None:
        tokenizer.pad_token_id = model.config.pad_token_id
    if weights == "lora":
        model = PeftModel.from_pretrained(model, f"{source}_adapter", is_trainable=True)
    rows = [json.loads(line) for line in (work / "train.jsonl").read_text().splitlines()]
    if scalar:
        rows = [{f"{s}_ids": r["prompt_ids"] + r[f"{s}_ids"] for s in ("chosen", "rejected")} for r in rows]
    common = dict(  # noqa: C408  as the configurations are written
        output_dir=str(work / f"trl_{kind}_{weights}"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=RATES[kind, weights],
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        max_grad_norm=1.0,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        max_length=None,
        seed=0,
    )
    clock = Clock()
    if scalar:
        cls, args = exact(RewardTrainer), RewardConfig(**common)
    else:
        cls, args = exact(DPOTrainer), DPOConfig(**common, beta=0.1)
    trainer = cls(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[clock]
    )
    trainer.train()
    for row, loss in zip(clock.rows, cls.losses, strict=True):
        row["loss"] = loss
    trained = trainer.model.merge_and_unload() if weights == "lora" else trainer.model
    out = work / f"trl_{kind}_{weights}"
    trained.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    steps = len(clock.rows)
    rate = BATCH * (steps - 1) / sum(r["seconds"] for r in clock.rows[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (out / "run.json").write_text(json.dumps({"steps": clock.rows, "pairs_per_s": rate, "peak_gb": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
