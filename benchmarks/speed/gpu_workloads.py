"""What is compared on a GPU: the workloads of the processor at sizes that fill one, on models of two sizes.

A workload's first two sides, ours and the peer most likely to be the fastest, come before everybody's others. All
sides compute in bfloat16 over float32 master weights: ours keeps them in the optimiser, TRL in the model, under
autocast. A side whose weights are bfloat16 alone learns less from a step; it is shown and held against nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.gpu_sizes import folder
from benchmarks.speed.workload import Role, Side, Workload

BUDGET = 32768
"""Tokens of a micro-batch of ours: the GPU is full well below."""
WARM = 2
"""Training steps left out: kernels are compiled and chosen in the first, and memory is still sought in the next."""
STATIC = "transformers generate, static cache"
LIMITS = {STATIC: 300.0}
"""Seconds of a side that compiles for a minute or more."""
SFT: dict[str, Any] = {"rows": "sft.jsonl", "lr": 2e-5, "batch": 32, "steps": 8, "warm": WARM}
LONG = {"rows": "sft_long.jsonl", "lr": 2e-5, "batch": 4, "steps": 5, "warm": WARM}
DPO = {"rows": "pairs.jsonl", "lr": 5e-6, "batch": 16, "steps": 5, "warm": WARM, "lora": False}
LORA = DPO | {"lr": 5e-5, "lora": True}
REWARD = {"rows": "pairs.jsonl", "lr": 1e-5, "batch": 16, "steps": 5, "warm": WARM}
GRPO = {"rows": "prompts.jsonl", "lr": 1e-6, "prompts": 8, "group": 8, "tokens": 256, "steps": 3, "warm": 1}
GRPO_ROWS = 32
"""TRL's answers at once: of 64 the logits alone (64 x 256 x 151,936 numbers of 4 bytes, their softmax and their
gradients) would take 40 GB beside the weights. What does not fit is halved."""
PACKED = {"packing": True, "batch": 9, "max_length": 512}
"""As many tokens a step as 32 rows have (4,400)."""
ROLLOUTS: dict[str, Any] = {
    "rows": "prompts.jsonl",
    "prompts": 16,
    "group": 16,
    "tokens": 256,
    "ends": False,
    "repetitions": 3,
}
SHORT, LONGER = 64, 512
UNEQUAL = ROLLOUTS | {
    "limits": [LONGER if i % 10 == 9 else SHORT for i in range(16 * 16)],
    "tokens": LONGER,
    "repetitions": 2,
}
QUICK: dict[str, Any] = {"steps": 2, "warm": 1, "tokens": 8, "repetitions": 2, "prompts": 2, "group": 4, "batch": 2}


@dataclass(frozen=True)
class Setting:
    """Of which model, on which device; quick: as little as shows that everything runs."""

    model: str
    device: str
    quick: bool = False

    def options(self, given: dict[str, Any], scorer: bool) -> dict[str, Any]:
        told: dict[str, Any] = {
            "model": folder(self.model) + ("_scorer" if scorer else ""),
            "device": self.device,
        } | given
        if self.quick:
            told |= {k: v for k, v in QUICK.items() if k in told}
        if self.quick and "limits" in told:
            told |= {"limits": [8 if i % 4 == 3 else 2 for i in range(told["prompts"] * told["group"])]}
        return told


def workloads(setting: Setting) -> dict[str, Workload]:
    """All, by name, in the order of the table."""
    made = [
        training(setting, "sft", "SFT, 32 short rows a step", "tokens", "sft", "trl_sft.py", SFT, packed=True),
        training(setting, "sft_long", "SFT, 4 rows of 4096 a step", "tokens", "sft", "trl_sft.py", LONG),
        training(setting, "dpo", "DPO with reference, all weights", "pairs", "dpo", "trl_dpo.py", DPO),
        training(setting, "dpo_lora", "DPO with reference, LoRA r16", "pairs", "dpo", "trl_dpo.py", LORA),
        training(setting, "reward", "reward model, same pairs", "pairs", "reward_model", "trl_reward.py", REWARD),
        grpo(setting, "grpo", "GRPO step 8x8x256, beta 0", GRPO | {"beta": 0.0}),
        grpo(setting, "grpo_kl", "GRPO step 8x8x256, beta 0.04", GRPO | {"beta": 0.04}),
        drawing(setting, "rollouts", "rollouts 16x16x256", "rollouts", ROLLOUTS),
        drawing(setting, "unequal", "rollouts, a tenth 8 times longer", "unequal", UNEQUAL),
    ]
    return {w.name: w for w in made}


def training(
    setting: Setting,
    name: str,
    title: str,
    unit: str,
    ours: str,
    script: str,
    given: dict[str, Any],
    packed: bool = False,
) -> Workload:
    options = setting.options(given, scorer=name == "reward")
    peers = trained(script, options, setting)
    if packed:
        more = PACKED | ({"batch": 1} if setting.quick else {})
        peers.insert(2, peer("TRL packed, tuned", "tuned", script, options | more, checkpointing=False))
    return Workload(name, title, unit, [own(ours, options), *peers], losses="TRL tuned")


def grpo(setting: Setting, name: str, title: str, given: dict[str, Any]) -> Workload:
    options = setting.options(given, scorer=False)
    rows = min(GRPO_ROWS, options["prompts"] * options["group"])
    told = options | {"micro": rows}
    short = {"checkpointing": False, "weights": "bfloat16", "continuous": True}
    peers = trained("trl_grpo.py", told, setting)
    peers.append(peer("TRL, bf16 weights, continuous batching", "other", "trl_grpo.py", told, **short))
    return Workload(name, title, "steps", [own("grpo", options), *peers], inverse=True)


def drawing(setting: Setting, name: str, title: str, ours: str, given: dict[str, Any]) -> Workload:
    options = setting.options(given, scorer=False)
    script = "hf_rollouts.py"
    peers = [
        peer("transformers generate", "tuned", script, options),
        peer("transformers continuous batching", "tuned", "hf_continuous.py", options),
        peer(STATIC, "tuned", script, options, cache="static"),
    ]
    return Workload(name, title, "tokens", [own(ours, options), *peers])


def own(program: str, options: dict[str, Any]) -> Side:
    """Weights and products in bfloat16, the optimiser's own in float32."""
    told = options | {"precision": "bf16", "weights": "bfloat16", "budget": BUDGET}
    return Side("ours", "ours", "ours", program, told, {}, "bf16")


def peer(name: str, role: Role, script: str, options: dict[str, Any], **more: Any) -> Side:
    return Side(name, role, "peers", script, options | {"bf16": True} | more, {}, "bf16")


def trained(script: str, options: dict[str, Any], setting: Setting) -> list[Side]:
    """TRL at the settings that matter on a GPU, and at its defaults."""
    liger = [peer("TRL tuned, Liger", "tuned", script, options, checkpointing=False, liger=True)]
    batch = options.get("batch", 0)
    quarters = [peer("TRL tuned, in quarters", "tuned", script, options, checkpointing=False, micro=batch // 4)]
    short = peer("TRL, bf16 weights", "other", script, options, checkpointing=False, weights="bfloat16")
    return [
        peer("TRL tuned", "tuned", script, options, checkpointing=False),
        *(liger if setting.device == "cuda" else []),  # its kernels run there only
        *(quarters if batch >= 4 else []),  # less padding
        peer("TRL default", "default", script, options, checkpointing=True),
        short,
    ]


def chosen(setting: Setting, only: str | None, sides: str | None) -> list[Workload]:
    """The workloads named, with the sides whose names hold one of the given texts. Raises SystemExit for a name that
    there is not."""
    found = workloads(setting)
    names = list(found) if only is None else only.split(",")
    missing = [name for name in names if name not in found]
    if missing:
        raise SystemExit(f"no workload is called {missing[0]!r}; there are {', '.join(found)}")
    return [shorn(found[name], sides) for name in names]


def shorn(workload: Workload, sides: str | None) -> Workload:
    from dataclasses import replace

    if sides is None:
        return workload
    wanted = [text.strip().lower() for text in sides.split(";")]
    kept: Sequence[Side] = [s for s in workload.sides if any(matches(text, s.name) for text in wanted)]
    return replace(workload, sides=kept)


def matches(text: str, name: str) -> bool:
    """ "=TRL tuned" is that side alone, "TRL tuned" all whose names hold it."""
    return name.lower() == text[1:] if text.startswith("=") else text in name.lower()
