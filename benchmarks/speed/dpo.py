"""DPO: pairs of hh-rlhf, 4 a step, the reference's cost included; all weights, or an adapter, the reference without."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.speed import ours, rows
from benchmarks.speed.workload import Workload, own, trl_sides

from ladder.losses import DPO
from ladder.signals.preferences import Preferences

BATCH = 4
FULL = {"model": "base", "rows": "pairs.jsonl", "lr": 5e-6, "batch": BATCH, "steps": 5, "lora": False}
LORA = FULL | {"lr": 5e-5, "lora": True}
LONGEST = 512


def run(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    loaded = ours.load(work, options)
    n = options["steps"] * options["batch"]
    engine = ours.engine(loaded, options)
    reference = partial(engine.forward, reference=True) if options["lora"] else engine.freeze().forward
    pairs = rows.pairs(work / options["rows"], n)
    examples = ours.in_order(pairs, options["batch"])
    done = ours.steps(Preferences(examples, reference), engine, DPO(beta=0.1), options["steps"])
    timed = ours.timed(rows.read(work / options["rows"], n), options)
    tokens = sum(map(rows.pair_tokens, timed))
    # forward, backward to what is trained (all weights, or activations alone), and the reference's forward
    passes = (4.0 if options["lora"] else 6.0) + 2.0
    return {
        "amount": {"pairs": len(timed)},
        **ours.timing(done, options),
        "losses": [row["loss"] for row in done],
        "flops": passes * ours.parameters(loaded) * tokens,
    }


def workload(name: str, title: str, options: dict[str, Any], **more: Any) -> Workload:
    mine = own("dpo", **options)
    return Workload(name, title, "pairs", [*mine, *trl_sides("trl_dpo.py", **options)], losses="TRL tuned", **more)


WORKLOADS = [
    workload("dpo", "DPO with reference, all weights", FULL, at_least={"tuned": 3.0}, memory=True),
    workload("dpo_lora", "DPO with reference, LoRA r16", LORA, at_least={"tuned": 3.0}),
]
