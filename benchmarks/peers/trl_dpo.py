"""TRL's side of benchmarks/speed/dpo.py: the same pairs in the same order, all weights or the same first adapter."""

from __future__ import annotations

from typing import Any

import common
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer


class Trainer(common.Unprepared, DPOTrainer):
    """With the rows as they are."""


def main() -> None:
    work, result, options = common.called()
    source = work / options["model"]
    rows = common.rows(work / options["rows"], options["steps"] * options["batch"])

    def train(micro: int) -> dict[str, Any]:
        Trainer.losses.clear()
        model = AutoModelForCausalLM.from_pretrained(source, dtype=common.weights(options))
        tokenizer = common.tokenizer(source, model)
        if options["lora"]:
            model = PeftModel.from_pretrained(model, f"{source}_adapter", is_trainable=True)
        args = DPOConfig(
            **common.settings(work, options, **common.accumulated(options, micro), max_length=None, beta=0.1)
        )
        clock = common.Clock(common.warm(options))
        Trainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock],
        ).train()
        losses = common.per_step(Trainer.losses, options["batch"] // micro, mean=True)
        pairs = len(rows) - clock.warm * options["batch"]
        return {"amount": {"pairs": pairs}, "losses": losses, **clock.timing()}

    common.report(result, common.fitting(options, train))


if __name__ == "__main__":
    main()
