"""TRL's side of benchmarks/speed/sft.py: the same rows in the same batches, or packed as TRL packs them.

packing: best-fit packing into rows of `max_length`, `batch` of them a step; then a step holds other rows than ours.
"""

from __future__ import annotations

from typing import Any, ClassVar

import common
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer


class Trainer(common.Recorded, SFTTrainer):
    tokens: ClassVar[list[torch.Tensor]] = []

    def compute_loss(self, model, inputs, *args, **kwargs):
        mask = inputs.get("attention_mask")
        ids = inputs["input_ids"]
        self.tokens.append(mask.sum() if mask is not None else torch.tensor(ids.numel()))
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
    packing = options.get("packing", False)
    more = {"packing": True, "max_length": options["max_length"]} if packing else {"max_length": None}

    def train(micro: int) -> dict[str, Any]:
        Trainer.losses.clear()
        Trainer.tokens.clear()
        model = AutoModelForCausalLM.from_pretrained(work / options["model"], dtype=common.weights(options))
        args = SFTConfig(**common.settings(work, options, **common.accumulated(options, micro), **more))
        clock = common.Clock(common.warm(options))
        Trainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=common.tokenizer(work / options["model"], model),
            callbacks=[clock],
        ).train()
        parts = options["batch"] // micro
        tokens = common.per_step(Trainer.tokens, parts, mean=False)
        losses = common.per_step(Trainer.losses, parts, mean=False)
        return {"amount": {"tokens": int(sum(tokens[clock.warm :]))}, "losses": losses, **clock.timing()}

    common.report(result, common.fitting(options, train))


if __name__ == "__main__":
    main()
