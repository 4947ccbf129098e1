"""TRL's side of benchmarks/speed/grpo.py: the same prompts in the same order, as many tokens, the same reward.

micro: sequences of one forward pass; the step's others are accumulated.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import common
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer


def odd_share(completion_ids, **_) -> list[float]:
    return [sum(i % 2 for i in ids) / max(1, len(ids)) for ids in completion_ids]


class Trainer(GRPOTrainer):
    """Prompts are names of token ids; every answer runs to the limit. Notes the seconds of each phase."""

    ids: ClassVar[dict[str, list[int]]] = {}
    spent: ClassVar[dict[str, float]] = {"generation": 0.0, "logprob": 0.0}
    losses: ClassVar[list[float]] = []
    spreads: ClassVar[list[float]] = []

    def _tokenize_prompts(self, prompts):
        return [self.ids[p] for p in prompts], None, {}

    def _generate(self, *args, **kwargs):
        begun = time.perf_counter()
        out = super()._generate(*args, **kwargs)
        self.spent["generation"] += time.perf_counter() - begun
        return out

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        begun = time.perf_counter()
        out = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if not torch.is_grad_enabled():
            self.spent["logprob"] += time.perf_counter() - begun
        return out

    def _compute_loss(self, model, inputs):
        self.spreads.append(float(inputs["advantages"].abs().min()))
        loss = super()._compute_loss(model, inputs)
        self.losses.append(float(loss.detach()))
        return loss


def config(work: Any, options: dict[str, Any], **more: Any) -> GRPOConfig:
    micro, answers = options["micro"], options["prompts"] * options["group"]
    return GRPOConfig(
        **common.settings(
            work,
            options,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=answers // micro,
            num_generations=options["group"],
            max_completion_length=options["tokens"],
            beta=options["beta"],
            shuffle_dataset=False,
        )
        | more
    )


class Spent(common.Clock):
    """The clock, which also keeps what each phase had taken at the end of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[dict[str, float]] = []

    def on_step_end(self, *_, **__) -> None:
        super().on_step_end()
        self.parts.append(dict(Trainer.spent))

    def a_step(self) -> dict[str, float]:
        n = len(self.ends) - 1
        parts = {k: (self.parts[-1][k] - self.parts[0][k]) / n for k in self.parts[0]}
        return parts | {"training": self.seconds / n - sum(parts.values())}


def main() -> None:
    work, result, options = common.called()
    source = work / options["model"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    rows = common.rows(work / options["rows"], options["prompts"] * options["steps"])
    Trainer.ids = {str(i): row["ids"] for i, row in enumerate(rows)}
    clock = Spent()
    never = model.config.vocab_size  # no token has this id
    trainer = Trainer(
        model=model,
        reward_funcs=odd_share,
        args=config(work, options, generation_kwargs={"eos_token_id": never}),
        train_dataset=Dataset.from_list([{"prompt": name} for name in Trainer.ids]),
        processing_class=common.tokenizer(source, model),
        callbacks=[clock],
    )
    trainer.eos_token_ids = [never]
    trainer.train()
    made = {"amount": {"steps": len(clock.ends) - 1}, "seconds": clock.seconds, "parts": clock.a_step()}
    common.report(result, made | {"losses": Trainer.losses, "smallest_advantage": min(Trainer.spreads)})


if __name__ == "__main__":
    main()
