"""TRL's side of benchmarks/speed/grpo.py: the same prompts in the same order, as many tokens, the same reward.

micro: sequences of one forward pass; the step's others are accumulated. continuous: answers are drawn by transformers'
continuous batching, for which TRL turns the weights themselves into bfloat16.
"""

from __future__ import annotations

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
    losses: ClassVar[list[torch.Tensor]] = []
    spreads: ClassVar[list[torch.Tensor]] = []

    @classmethod
    def forget(cls) -> None:
        """What an earlier trainer noted."""
        cls.losses.clear()
        cls.spreads.clear()
        cls.spent.update(dict.fromkeys(cls.spent, 0.0))

    def _tokenize_prompts(self, prompts):
        return [self.ids[p] for p in prompts], None, {}

    def _generate(self, *args, **kwargs):
        begun = common.now()
        out = super()._generate(*args, **kwargs)
        self.spent["generation"] += common.now() - begun
        return out

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        begun = common.now()
        out = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.spent["logprob"] += common.now() - begun
        return out

    def _compute_loss(self, model, inputs):
        self.spreads.append(inputs["advantages"].abs().min())
        loss = super()._compute_loss(model, inputs)
        self.losses.append(loss.detach())
        return loss


def config(work: Any, options: dict[str, Any], micro: int, **more: Any) -> GRPOConfig:
    return GRPOConfig(
        **common.settings(
            work,
            options,
            **common.accumulated(options | {"batch": options["prompts"] * options["group"]}, micro),
            num_generations=options["group"],
            max_completion_length=options["tokens"],
            beta=options["beta"],
            shuffle_dataset=False,
            use_transformers_continuous_batching=options.get("continuous", False),
        )
        | more
    )


class Spent(common.Clock):
    """The clock, which also keeps what each phase had taken at the end of each step."""

    def __init__(self, warm: int = 1) -> None:
        super().__init__(warm)
        self.parts: list[dict[str, float]] = []

    def on_step_end(self, *_, **__) -> None:
        super().on_step_end()
        self.parts.append(dict(Trainer.spent))

    def a_step(self) -> dict[str, float]:
        n, before = len(self.ends) - self.warm, self.parts[self.warm - 1]
        parts = {k: (self.parts[-1][k] - before[k]) / n for k in before}
        return parts | {"training": self.seconds / n - sum(parts.values())}


def main() -> None:
    work, result, options = common.called()
    source = work / options["model"]
    rows = common.rows(work / options["rows"], options["prompts"] * options["steps"])
    Trainer.ids = {str(i): row["ids"] for i, row in enumerate(rows)}

    def train(micro: int) -> dict[str, Any]:
        Trainer.forget()
        model = AutoModelForCausalLM.from_pretrained(source, dtype=common.weights(options))
        clock = Spent(common.warm(options))
        never = model.config.vocab_size  # no token has this id
        trainer = Trainer(
            model=model,
            reward_funcs=odd_share,
            args=config(work, options, micro, generation_kwargs={"eos_token_id": never}),
            train_dataset=Dataset.from_list([{"prompt": name} for name in Trainer.ids]),
            processing_class=common.tokenizer(source, model),
            callbacks=[clock],
        )
        trainer.eos_token_ids = [never]
        trainer.train()
        made = {"amount": {"steps": len(clock.ends) - clock.warm}, "parts": clock.a_step(), **clock.timing()}
        least = min(map(float, Trainer.spreads))
        return made | {"losses": [float(x) for x in Trainer.losses], "smallest_advantage": least}

    common.report(result, common.fitting(options | {"batch": options["prompts"] * options["group"]}, train))


if __name__ == "__main__":
    main()
