"""The workloads of sft.py, dpo.py, grpo.py and rollouts.py on a model of 0.9 million random weights.

What is measured is the program around the model. Our side gives each core a worker (engine.workers, sampler.workers).
"""

from __future__ import annotations

from benchmarks.speed import dpo, grpo, rollouts, sft
from benchmarks.speed.workload import Workload, own, trl, trl_sides

SFT = sft.OPTIONS | {"model": "tiny", "rows": "tiny_sft.jsonl", "lr": 1e-3, "steps": 24}
DPO = dpo.FULL | {"model": "tiny", "rows": "tiny_pairs.jsonl", "lr": 1e-4, "steps": 20}
GRPO = grpo.OPTIONS | {"model": "tiny", "rows": "tiny_prompts.jsonl", "lr": 1e-4, "steps": 6, "beta": 0.0}
ROLLOUTS = rollouts.OPTIONS | {"model": "tiny", "rows": "tiny_prompts.jsonl", "repetitions": 5}

WORKLOADS = [
    Workload(
        "tiny_sft",
        "tiny model: SFT",
        "tokens",
        [*own("sft", **SFT), *sft.peers(**SFT)],
        at_least={"tuned": 2.5},
        losses="TRL padded, tuned",
    ),
    Workload(
        "tiny_dpo",
        "tiny model: DPO",
        "pairs",
        [*own("dpo", **DPO), *trl_sides("trl_dpo.py", **DPO)],
        at_least={"tuned": 2.5},
        losses="TRL tuned",
    ),
    Workload(
        "tiny_grpo",
        "tiny model: GRPO step 4x8x128",
        "steps",
        [
            *own("grpo", **GRPO),
            trl("TRL tuned, 32 at once", "tuned", "trl_grpo.py", checkpointing=False, micro=32, **GRPO),
            *trl_sides("trl_grpo.py", micro=8, **GRPO),
        ],
        inverse=True,
        at_least={"tuned": 4.5},
    ),
    Workload(
        "tiny_rollouts",
        "tiny model: rollouts 4x16x128",
        "tokens",
        [
            *own("rollouts", precisions=("fp32",), **ROLLOUTS),
            trl("transformers generate, tuned", "tuned", "hf_rollouts.py", **ROLLOUTS),
            trl("transformers generate", "tuned", "hf_rollouts.py", tune=False, **ROLLOUTS),
        ],
        at_least={"tuned": 4.0},
    ),
]
