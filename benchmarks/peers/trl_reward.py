"""TRL's side of benchmarks/speed/reward_model.py: the same pairs, order and first score."""

from __future__ import annotations

import common
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer


class Trainer(common.Unprepared, RewardTrainer):
    """With the rows as they are."""


def main() -> None:
    work, result, options = common.called()
    source, batch = work / options["model"], options["batch"]
    model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32)
    rows = [
        {f"{side}_ids": r["prompt_ids"] + r[f"{side}_ids"] for side in ("chosen", "rejected")}
        for r in common.rows(work / options["rows"], options["steps"] * batch)
    ]
    args = RewardConfig(**common.settings(work, options, per_device_train_batch_size=batch, max_length=None))
    clock = common.Clock()
    Trainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=common.tokenizer(source, model),
        callbacks=[clock],
    ).train()
    pairs = len(rows) - batch
    common.report(result, {"amount": {"pairs": pairs}, "seconds": clock.seconds, "losses": Trainer.losses})


if __name__ == "__main__":
    main()
