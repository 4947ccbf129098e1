"""transformers' continuous batching, beside benchmarks/speed/rollouts.py and unequal.py: pages of keys, prompts shared.

The manager lives through all repetitions, and its graphs are captured outside the clock. limits as in hf_rollouts.py.
"""

from __future__ import annotations

from typing import Any

import common
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.continuous_batching.utils import WorkloadHints


def draw(manager: Any, prompts: list[list[int]], limits: list[int]) -> int:
    """Tokens of all answers. Raises RuntimeError when the manager gives up."""
    for ids, limit in zip(prompts, limits, strict=True):
        manager.add_request(ids, max_new_tokens=limit)
    done, tokens = 0, 0
    while done < len(prompts):
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("continuous batching ended before all answers were there")
        elif result.is_finished():
            if result.error is not None:
                raise RuntimeError(result.error)
            done, tokens = done + 1, tokens + len(result.generated_tokens)
    return tokens


def main() -> None:
    work, result, options = common.called()
    dtype = torch.bfloat16 if options["bf16"] else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(work / options["model"], dtype=dtype).eval()
    model = model.to(options.get("device", "cpu"))
    rows = common.rows(work / options["rows"], options["prompts"])
    prompts = [row["ids"] for row in rows for _ in range(options["group"])]
    limits = options.get("limits") or [options["tokens"]] * len(prompts)
    config = GenerationConfig(
        max_new_tokens=max(limits), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        eos_token_id=model.config.vocab_size,  # no token has this id: every answer runs to its limit
        pad_token_id=model.config.pad_token_id or 0,
    )  # fmt: skip
    hints = WorkloadHints(max(map(len, prompts)), max(limits), len(prompts))
    amounts, seconds = [], []
    with (
        torch.no_grad(),
        model.continuous_batching_context_manager(config, timeout=5, workload_hints=hints) as manager,
    ):
        for _ in range(options["repetitions"]):
            begun = common.now()
            amounts.append(draw(manager, prompts, limits))
            seconds.append(common.now() - begun)
    assert set(amounts) == {sum(limits)}
    common.drawn(result, amounts, seconds)


if __name__ == "__main__":
    main()
