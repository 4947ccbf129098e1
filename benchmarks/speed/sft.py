"""SFT: 64 Alpaca-style rows, 8 a step, all weights, the answers trained; real tokens (prompt and answer) a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.speed import ours, rows
from benchmarks.speed.workload import Side, Workload, own, trl

from ladder.losses import CrossEntropy

BATCH = 8
OPTIONS = {"model": "base", "rows": "sft.jsonl", "lr": 2e-5, "batch": BATCH, "steps": 8}


def run(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    loaded = ours.load(work, options)
    units = rows.samples(work / options["rows"], options["steps"] * options["batch"])
    signal = ours.in_order(units, options["batch"])
    done = ours.steps(signal, ours.engine(loaded, options), CrossEntropy(), options["steps"])
    tokens = sum(len(u.tokens) for u in ours.timed(units, options))
    return {
        "amount": {"tokens": tokens},
        **ours.timing(done, options),
        "losses": [row["loss"] for row in done],
        "flops": 6.0 * ours.parameters(loaded) * tokens,
    }


def peers(**options: Any) -> list[Side]:
    """TRL's settings that were found to matter; which one is fastest depends on the processor."""
    script = "trl_sft.py"
    packed = {"packing": True, "batch": 2, "max_length": 512}
    return [
        trl("TRL packed, tuned", "tuned", script, checkpointing=False, **options | packed),
        trl("TRL padded, tuned", "tuned", script, checkpointing=False, **options),
        trl("TRL default in fp32", "default", script, tune=False, checkpointing=True, **options),
        trl("TRL packed, tuned", "other", script, bf16=True, checkpointing=False, **options | packed),
        trl("TRL default", "other", script, bf16=True, tune=False, checkpointing=True, **options),
    ]


WORKLOADS = [
    Workload(
        "sft",
        "SFT, 64 Alpaca-style rows",
        "tokens",
        [*own("sft", **OPTIONS), *peers(**OPTIONS)],
        at_least={"tuned": 2.0, "default": 4.0},
        share=0.75,
        memory=True,
        losses="TRL padded, tuned",
    )
]
