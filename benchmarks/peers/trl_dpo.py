"""TRL's side of benchmarks/speed/dpo.py: the same pairs in the same order, all weights or the same first adapter."""

from __future__ import annotations

import common
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer


class Trainer(common.Unprepared, DPOTrainer):
    """With the rows as they are."""


def main() -> None:
    work, result, options = common.called()
    source = work / options["model"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = common.tokenizer(source, model)
    if options["lora"]:
        model = PeftModel.from_pretrained(model, f"{source}_adapter", is_trainable=True)
    batch = options["batch"]
    rows = common.rows(work / options["rows"], options["steps"] * batch)
    args = DPOConfig(
        **common.settings(work, options, per_device_train_batch_size=batch, max_length=None, beta=0.1)
    )
    clock = common.Clock()
    Trainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[clock]
    ).train()
    pairs = len(rows) - batch
    common.report(result, {"amount": {"pairs": pairs}, "seconds": clock.seconds, "losses": Trainer.losses})


if __name__ == "__main__":
    main()
