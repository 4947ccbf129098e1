"""TRL's side of benchmarks/speed/sft.py: the same rows in the same batches, or packed as TRL packs them.

packing: best-fit packing into rows of `max_length`, `batch` of them a step; then a step holds other rows than ours.
"""

from __future__ import annotations

from typing import ClassVar

import common
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer


class Trainer(common.Recorded, SFTTrainer):
    tokens: ClassVar[list[int]] = []

    def compute_loss(self, model, inputs, *args, **kwargs):
        mask = inputs.get("attention_mask")
        self.tokens.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
        return super().compute_loss(model, inputs, *args, **kwargs)


def main() -> None:
    work, result, options = common.called()
    rows = [
        {
            "input_ids": r["prompt_ids"] + r["completion_ids"],
            "labels": [-100] * len(r["prompt_ids"]) + r["completion_ids"],
        }
        for r in common.rows(work / options["rows"], options.get("take"))
    ]
    model = AutoModelForCausalLM.from_pretrained(work / options["model"], dtype=torch.float32)
    packing = options.get("packing", False)
    more = {"packing": True, "max_length": options["max_length"]} if packing else {"max_length": None}
    args = SFTConfig(**common.settings(work, options, per_device_train_batch_size=options["batch"], **more))
    clock = common.Clock()
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=common.tokenizer(work / options["model"], model),
        callbacks=[clock],
    )
    trainer.train()
    made = {"amount": {"tokens": sum(Trainer.tokens[1:])}, "seconds": clock.seconds, "losses": Trainer.losses}
    common.report(result, made)


if __name__ == "__main__":
    main()
