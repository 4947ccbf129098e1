"""A reward model: the pairs of the DPO workload, a scalar head, all weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.speed import ours, rows
from benchmarks.speed.workload import Workload, own, trl_sides

from ladder.losses import BradleyTerry
from ladder.signals.preferences import at_end

OPTIONS = {"model": "scorer", "rows": "pairs.jsonl", "lr": 1e-5, "batch": 4, "steps": 5}


def run(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    loaded: Any = ours.load(work, options, scalar=True)
    n = options["steps"] * options["batch"]
    units = [at_end(p, int(loaded.model.config.pad_token_id)) for p in rows.pairs(work / options["rows"], n)]
    signal = ours.in_order(units, options["batch"])
    done = ours.steps(signal, ours.engine(loaded, options), BradleyTerry(), options["steps"])
    timed = ours.timed(rows.read(work / options["rows"], n), options)
    tokens = sum(map(rows.pair_tokens, timed))
    body = ours.parameters(loaded) - loaded.model.get_input_embeddings().weight.numel()  # looked up, not multiplied
    return {
        "amount": {"pairs": len(timed)},
        **ours.timing(done, options),
        "losses": [row["loss"] for row in done],
        "flops": 6.0 * body * tokens,
    }


WORKLOADS = [
    Workload(
        "reward",
        "reward model, same pairs",
        "pairs",
        [*own("reward_model", **OPTIONS), *trl_sides("trl_reward.py", **OPTIONS)],
        at_least={"tuned": 2.8},
        losses="TRL tuned",
    )
]
