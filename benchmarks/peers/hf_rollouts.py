"""transformers' generate, beside benchmarks/speed/rollouts.py and unequal.py: one padded batch with a cache.

limits: the length at which each answer ends, whatever it says; without it answers end by themselves or at `tokens`.
cache: the cache that generate is asked for ("static" is compiled, on a GPU); without it a dynamic one.
"""

from __future__ import annotations

from typing import Any

import common
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria


class Ends(StoppingCriteria):
    """Each row is over at its own length, as if it had drawn an end there."""

    def __init__(self, limits: list[int], prompt: int, device: str) -> None:
        self.limits, self.prompt = torch.tensor(limits, device=device), prompt

    def __call__(self, input_ids, scores, **_):
        return input_ids.shape[1] - self.prompt >= self.limits


def padded(prompts: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(p)) + p for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def drawn(answers: torch.Tensor, eos: list[int], limits: list[int]) -> int:
    """Tokens that were asked for: up to each answer's end, what pads the batch behind it left out."""
    total = 0
    for row, limit in zip(answers.tolist(), limits, strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in eos), len(row))
        total += min(end, limit)
    return total


def main() -> None:
    work, result, options = common.called()
    dtype = torch.bfloat16 if options["bf16"] else torch.float32
    device = options.get("device", "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(work / options["model"], dtype=dtype).eval().to(device)
    rows = common.rows(work / options["rows"], options["prompts"])
    prompts = [row["ids"] for row in rows for _ in range(options["group"])]
    limits = options.get("limits") or [options["tokens"]] * len(prompts)
    never = [model.config.vocab_size]
    saved = model.generation_config.eos_token_id
    eos = never if not options.get("ends", True) else saved if isinstance(saved, list) else [saved]
    pad = model.config.pad_token_id or 0
    config = GenerationConfig(
        max_new_tokens=max(limits), do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=eos,
        pad_token_id=pad, cache_implementation=options.get("cache"),
    )  # fmt: skip
    batch = {name: x.to(device) for name, x in padded(prompts, pad).items()}
    amounts, seconds = [], []
    for repetition in range(options["repetitions"]):
        torch.manual_seed(repetition)
        stop = [Ends(limits, batch["input_ids"].shape[1], device)] if options.get("limits") else []
        begun = common.now()
        with torch.no_grad():
            out = model.generate(**batch, generation_config=config, stopping_criteria=stop)
        seconds.append(common.now() - begun)
        amounts.append(drawn(out[:, batch["input_ids"].shape[1] :], eos, limits))
    common.drawn(result, amounts, seconds)


if __name__ == "__main__":
    main()
