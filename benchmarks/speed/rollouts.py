"""Rollouts: 4 GSM8K prompts x 16 answers of at most 128 tokens, temperature 1, natural ends; tokens drawn a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.speed import device, ours, rows, traffic
from benchmarks.speed.workload import Side, Workload, own, trl

from ladder.contract.rollouts import Request, Sampling

OPTIONS = {"model": "base", "rows": "prompts.jsonl", "prompts": 4, "group": 16, "tokens": 128, "repetitions": 3}


def run(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    loaded: Any = ours.load(work, options)
    asked = rows.read(work / options["rows"], options["prompts"])
    eos = loaded.eos if options.get("ends", True) else (loaded.model.config.vocab_size,)
    sampler = ours.sampler(loaded, options, eos)
    drawn, seconds, read = [], [], []
    lengths = [len(row["ids"]) for row in asked]
    for repetition in range(options["repetitions"]):
        requests = [
            Request(row["ids"], options["group"], Sampling(options["tokens"]), 1000 * repetition + i)
            for i, row in enumerate(asked)
        ]
        begun = device.now(sampler.device)
        groups = sampler.generate(requests)
        seconds.append(device.now(sampler.device) - begun)
        answers = [[len(c.tokens) for c in group] for group in groups]
        drawn.append(sum(map(sum, answers)))
        read.append(traffic.read(loaded.model, lengths, answers))
    return measured(drawn, seconds, ours.parameters(loaded)) | traffic.total(read[1:])


def measured(drawn: list[int], seconds: list[float], n: int) -> dict[str, Any]:
    """All repetitions but the first, which warms up."""
    tokens = sum(drawn[1:])
    return {
        "amount": {"tokens": tokens},
        "seconds": sum(seconds[1:]),
        "each": [t / s for t, s in zip(drawn, seconds, strict=True)],
        "flops": 2.0 * n * tokens,
    }


def vllm(name: str, *, compiled: bool, bf16: bool = False, **options: Any) -> Side:
    role = "other" if bf16 else "tuned"
    options |= {"compiled": compiled, "bf16": bf16, "block": 32}
    return Side(name, role, "vllm", "vllm_rollouts.py", options, {}, "bf16" if bf16 else "fp32")


def peers(**options: Any) -> list[Side]:
    script = "hf_rollouts.py"
    return [
        vllm("vLLM eager, block 32", compiled=False, **options),
        vllm("vLLM compiled, block 32", compiled=True, **options),
        trl("transformers generate, tuned", "default", script, **options),
        trl("transformers generate", "other", script, tune=False, **options),
        vllm("vLLM eager, block 32", compiled=False, bf16=True, **options),
        vllm("vLLM compiled, block 32", compiled=True, bf16=True, **options),
        trl("transformers generate, tuned", "other", script, bf16=True, **options),
    ]


WORKLOADS = [
    Workload(
        "rollouts",
        "rollouts 4x16x128, natural ends",
        "tokens",
        [*own("rollouts", **OPTIONS), *peers(**OPTIONS)],
        at_least={"tuned": 1.2, "default": 2.0},
        share=0.55,
    )
]
