"""TRL's side of benchmarks/speed/r1_zero.py: GRPOTrainer from the same base, prompts, batches, rate and schedule.

The judge of answers is the embedded world's own, which needs nothing but its source. Two optimiser steps follow each
generation, as on our side; TRL then computes the old log-probabilities itself.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import common
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from ladder.tasks.chain.answers import is_right


class Trainer(GRPOTrainer):
    """Prompts are names of token ids."""

    ids: list[list[int]]

    def _tokenize_prompts(self, prompts):
        return [self.ids[int(p)] for p in prompts], None, {}


class Checkpoints(common.Clock):
    """Saves the model every few steps of generation and keeps the time that training took up to there."""

    def __init__(self, model: Any, tokenizer: Any, directory: Path, every: int, minibatches: int) -> None:
        super().__init__()
        self.model, self.tokenizer, self.directory = model, tokenizer, directory
        self.every, self.minibatches = every, minibatches
        self.saved: list[dict[str, Any]] = []
        self.begun = self.saving = 0.0

    def on_train_begin(self, *_, **__) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, args, state, control, **_) -> None:
        step, rest = divmod(state.global_step, self.minibatches)
        if rest or step % self.every:
            return
        now = time.perf_counter()
        path = self.directory / f"{step:03d}"
        self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        self.saved.append({"step": step, "seconds": now - self.begun - self.saving, "path": str(path)})
        self.saving += time.perf_counter() - now


def reward(tokenizer: Any) -> Any:
    def right(completion_ids, answer, **_) -> list[float]:
        made = []
        for ids, gold in zip(completion_ids, answer, strict=True):
            ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
            text = tokenizer.decode(ids[:-1] if ended else ids)
            made.append(float(is_right(text, "eos" if ended else "length", gold)))
        return made

    return right


def schedule(optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> torch.optim.lr_scheduler.LambdaLR:
    """The recipe's: a linear rise over a share of the steps, then a linear fall to `final` times the rate."""
    total = options["steps"] * options["minibatches"]
    rising = options["warmup"] * total

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        x = min(1.0, (step - rising) / max(1.0, total - rising))
        return options["final"] + (1 - options["final"]) * (1 - x)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def config(work: Path, options: dict[str, Any]) -> GRPOConfig:
    answers = options["prompts"] * options["group"]
    return GRPOConfig(
        **common.settings(
            work,
            options,
            max_steps=options["steps"] * options["minibatches"],
            per_device_train_batch_size=answers // options["minibatches"],
            gradient_accumulation_steps=1,
            steps_per_generation=options["minibatches"],
            num_generations=options["group"],
            max_completion_length=options["tokens"],
            beta=options["beta"],
            shuffle_dataset=False,
        )
    )


def main() -> None:
    work, result, options = common.called()
    source = work / options["model"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = common.tokenizer(source, model)
    rows = common.rows(work / options["rows"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options["lr"], betas=tuple(options["betas"]), weight_decay=0.0, fused=True
    )
    checkpoints = Checkpoints(
        model, tokenizer, result.parent / "checkpoints", options["every"], options["minibatches"]
    )
    trainer = Trainer(
        model=model,
        reward_funcs=reward(tokenizer),
        args=config(work, options),
        train_dataset=Dataset.from_list([{"prompt": str(i), "answer": r["answer"]} for i, r in enumerate(rows)]),
        processing_class=tokenizer,
        callbacks=[checkpoints],
        optimizers=(optimizer, schedule(optimizer, options)),
    )
    trainer.ids = [r["ids"] for r in rows]
    trainer.train()
    seconds = checkpoints.saved[-1]["seconds"]
    common.report(result, {"amount": {"runs": 1}, "seconds": seconds, "checkpoints": checkpoints.saved})


if __name__ == "__main__":
    main()
