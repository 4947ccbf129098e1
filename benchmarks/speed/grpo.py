"""A GRPO step: 4 prompts x 8 answers x 128 tokens, no answer ending early, rewards with a spread in every group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.speed import ours, rows
from benchmarks.speed.rewards import reward
from benchmarks.speed.workload import Workload, own, trl_sides

from ladder.contract.rollouts import Sampling, Task
from ladder.losses import PolicyClip
from ladder.rollout.collect import Collector
from ladder.signals.rewards import Rewards

OPTIONS = {"model": "base", "rows": "prompts.jsonl", "lr": 1e-6, "prompts": 4, "group": 8, "tokens": 128, "steps": 3}


def run(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    loaded: Any = ours.load(work, options)
    engine = ours.engine(loaded, options)
    never = loaded.model.config.vocab_size  # no token has this id: every answer runs to the limit, here as there
    sampler = ours.sampler(loaded, options, (never,))
    asked = rows.read(work / options["rows"], options["prompts"] * options["steps"])
    ids = {str(i): row["ids"] for i, row in enumerate(asked)}
    tasks = [Task(name, name) for name in ids]
    sampling = Sampling(options["tokens"])
    rounded = ours.rounds(options)  # then the sampler does not round as the engine does
    warm = ours.warm(options)
    signal = Rewards(
        prompts=lambda step: tasks[step * options["prompts"] : (step + 1) * options["prompts"]],
        collect=Collector(sampler, lambda name: ids[name], options["group"], sampling, ours.SEED, "rl"),
        reward=reward,
        reference=engine.freeze().forward if options["beta"] else None,
        load=sampler.load,
        rescore=engine.forward if rounded else None,
    )
    loss = PolicyClip(kl_coef=options["beta"], kl="k3", importance_cap=2.0 if rounded else None)
    done = ours.steps(signal, engine, loss, options["steps"])
    return {
        "amount": {"steps": len(done) - warm},
        **ours.timing(done, options),
        "parts": parts(done[warm:]),
        "losses": [row["loss"] for row in done],
        "no_signal": [row["groups/no_signal"] for row in done],
        **flops(ours.parameters(loaded), [len(x) for x in ids.values()][warm * options["prompts"] :], options),
    }


def parts(done: list[dict[str, float]]) -> dict[str, float]:
    """Seconds of a step by phase."""
    n = len(done)
    drawing = sum(row["seconds/rollout"] for row in done) / n
    signal = sum(row["seconds/signal"] - row["seconds/reward"] for row in done) / n
    return {
        "generation": drawing,
        "logprob": signal - drawing,
        "training": sum(row["seconds/update"] for row in done) / n,
    }


def flops(n: int, prompt_lengths: list[int], options: dict[str, Any]) -> dict[str, float]:
    """The least arithmetic of the steps: every prompt read once, also where eight answers follow it."""
    answers = len(prompt_lengths) * options["group"] * options["tokens"]
    prompts = sum(prompt_lengths)
    update = 6.0 * n * (answers + prompts)
    drawing = 2.0 * n * (answers + prompts)
    reference = 2.0 * n * (answers + prompts) if options["beta"] else 0.0
    steps = len(prompt_lengths) / options["prompts"]
    return {"flops": update + drawing + reference, "update_flops": update / steps, "drawing_flops": drawing / steps}


def workload(name: str, title: str, options: dict[str, Any], **more: Any) -> Workload:
    mine = own("grpo", **options)
    return Workload(name, title, "steps", [*mine, *trl_sides("trl_grpo.py", micro=8, **options)], inverse=True, **more)


TARGETS: dict[Any, float] = {"tuned": 2.3, "default": 2.9}
WORKLOADS = [
    workload("grpo", "GRPO step 4x8x128, beta 0", OPTIONS | {"beta": 0.0}, at_least=TARGETS, share=0.7, memory=True),
    workload("grpo_kl", "GRPO step 4x8x128, beta 0.04", OPTIONS | {"beta": 0.04}, at_least=TARGETS, share=0.7),
]
