"""Rollouts of very unequal lengths: 16 GSM8K prompts x 4 answers, every tenth of them 8 times as long as the others.

Each answer ends at a length that was dealt beforehand, the same on every side, whatever it says.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.speed import device, ours, rows, traffic
from benchmarks.speed.rollouts import measured
from benchmarks.speed.workload import Side, Workload, own, trl

from ladder.contract.rollouts import Request, Sampling

PROMPTS, GROUP, SHORT, LONG = 16, 4, 32, 256
OPTIONS = {
    "model": "base",
    "rows": "prompts.jsonl",
    "prompts": PROMPTS,
    "group": GROUP,
    "limits": [LONG if i % 10 == 9 else SHORT for i in range(PROMPTS * GROUP)],
    "ends": False,
    "tokens": LONG,
    "repetitions": 2,
}


def run(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    loaded: Any = ours.load(work, options)
    asked = rows.read(work / options["rows"], options["prompts"])
    never = (loaded.model.config.vocab_size,)
    sampler = ours.sampler(loaded, options, never)
    drawn, seconds = [], []
    for repetition in range(options["repetitions"]):
        requests = requested(asked, options, 1000 * repetition)
        begun = device.now(sampler.device)
        groups = sampler.generate(requests)
        seconds.append(device.now(sampler.device) - begun)
        drawn.append(sum(len(c.tokens) for group in groups for c in group))
    assert set(drawn) == {sum(options["limits"])}
    return measured(drawn, seconds, ours.parameters(loaded)) | reading(loaded, asked, options)


def reading(loaded: Any, asked: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, float]:
    """The least that decoding reads, in the repetitions that count."""
    n = options["group"]
    limits = [options["limits"][i * n : (i + 1) * n] for i in range(len(asked))]
    one = traffic.read(loaded.model, [len(row["ids"]) for row in asked], limits)
    return traffic.total([one] * (options["repetitions"] - 1))


def requested(asked: list[dict[str, Any]], options: dict[str, Any], key: int) -> list[Request]:
    """One request for each length that a prompt's answers have."""
    made = []
    for i, row in enumerate(asked):
        lengths = Counter(options["limits"][i * options["group"] : (i + 1) * options["group"]])
        made += [Request(row["ids"], n, Sampling(length), key + 10 * i + n) for length, n in lengths.items()]
    return made


def peers(**options: Any) -> list[Side]:
    script = "hf_rollouts.py"
    return [
        trl("transformers generate, tuned", "tuned", script, **options),
        trl("transformers generate", "other", script, tune=False, **options),
        trl("transformers generate, tuned", "other", script, bf16=True, **options),
    ]


WORKLOADS = [
    Workload(
        "unequal",
        "rollouts, a tenth 8 times longer",
        "tokens",
        [*own("unequal", **OPTIONS), *peers(**OPTIONS)],
        at_least={"tuned": 4.0},
    )
]
