"""TRL's side of benchmarks/speed/reward_model.py: the same pairs, order and first score."""

from __future__ import annotations

from typing import Any

import common
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer


class Trainer(common.Unprepared, RewardTrainer):
    """With the rows as they are."""


def main() -> None:
    work, result, options = common.called()
    source, batch = work / options["model"], options["batch"]
    rows = [
        {f"{side}_ids": r["prompt_ids"] + r[f"{side}_ids"] for side in ("chosen", "rejected")}
        for r in common.rows(work / options["rows"], options["steps"] * batch)
    ]

    def train(micro: int) -> dict[str, Any]:
        Trainer.losses.clear()
        model = AutoModelForSequenceClassification.from_pretrained(source, dtype=common.weights(options))
        args = RewardConfig(**common.settings(work, options, **common.accumulated(options, micro), max_length=None))
        clock = common.Clock(common.warm(options))
        Trainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=common.tokenizer(source, model),
            callbacks=[clock],
        ).train()
        losses = common.per_step(Trainer.losses, batch // micro, mean=True)
        return {"amount": {"pairs": len(rows) - clock.warm * batch}, "losses": losses, **clock.timing()}

    common.report(result, common.fitting(options, train))


if __name__ == "__main__":
    main()
