"""Writes made-up runs with plausible numbers, for tests of the report (to look at one: `python fake_run.py DIR`)."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import yaml

from ladder.tasks.chain.source import Chain
from ladder.tasks.chain.words import DIGITS_B, OPS_A, OPS_B

DPO = {"kind": "DPO", "beta": 0.1}
R1 = {
    "about": "Random weights to a model that reasons.\nExpect: R1-Zero discovers working step by step.",
    "name": "r1",
    "seed": 0,
    "model": {"source": "preset:chain"},
    "task": {"chain": {"steps": [3, 6]}},
    "reward": "chain",
    "eval": {
        "sets": {
            "easy": {"task": {"chain": {"steps": [3, 6]}}, "split": "test", "n": 1024},
            "hard": {"task": {"chain": {"steps": [8, 12]}}, "split": "test", "n": 1024},
        },
        "show": 5,
    },
    "stages": {
        "pretrain": {"kind": "pretrain", "from": None, "data": {"web": {"documents": 90000}}},
        "r1_zero": {"kind": "rl", "from": "pretrain", "reward": None, "steps": 34},
        "harvest": {"kind": "rejection_sampling", "from": "r1_zero", "task": {"chain": {"steps": [3, 12]}}},
        "sft": {"kind": "sft", "from": "pretrain", "data": {"stage": "harvest"}},
        "rl": {"kind": "rl", "from": "sft", "reward": None, "task": {"chain": {"steps": [4, 12]}}, "steps": 36},
    },
}
SMALL: dict[str, Any] = {
    "name": "sums",
    "seed": 7,
    "model": {"source": "someone/small-model"},
    "reward": ["exact", {"kind": "format", "weight": 0.2}],
    "eval": {"sets": {"test": {"task": {"gym": {"name": "chain_sum"}}}}, "samples": 4},
    "stages": {"tune": {"kind": "sft", "from": None}, "improve": {"kind": "rl", "from": "tune"}},
}
"""A second recipe: an external model, one evaluation set, no rejection sampling, no notations."""


def write_small(path: Path) -> Path:
    """Writes a finished run of SMALL; returns its directory."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False), encoding="utf-8")
    r, stages = random.Random(0), {}
    for name, accuracy, seconds in (("tune", 0.41, 512.0), ("improve", 0.38, 4210.0)):
        (path / name).mkdir(exist_ok=True)
        figures = {"accuracy": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02, "length": 120.5}
        stages[name] = {"test": figures | {"n": 500, "samples": 4, "temperature": 0.7}, "seconds": seconds}
        (path / name / "summary.json").write_text(json.dumps(stages[name]), encoding="utf-8")
        thought = f"<thinking>\nFirst 12 + 30 = 42.\n{'Then I add them up again. ' * 18}\n</thinking>\n42"
        chat = [{"role": "user", "content": "What is 12 + 30?\nThink first."}]
        sample = {"set": "test", "task": "sum/1", "prompt": chat, "answer": 42, "text": thought, "length": 96}
        sample["reward"] = 0.7
        unjudged = {"set": "test", "task": "sum/2", "prompt": "1 + 1 =", "answer": 2, "text": "", "reward": None}
        (path / name / "samples.json").write_text(json.dumps([sample, unjudged]), encoding="utf-8")
    _write_jsonl(path / "tune" / "metrics.jsonl", _supervised_metrics(r, "sft"))
    keys = {"reward/mean": 0.6, "reward/exact": 0.4, "reward/format": 0.9, "length/mean": 118.0, "entropy": 0.7}
    rows = [{"step": s, **{k: v + s * 0.001 + r.gauss(0, 0.02) * v for k, v in keys.items()}} for s in range(1, 201)]
    _write_jsonl(path / "improve" / "metrics.jsonl", rows)
    evals = [{"step": s, "set": "test", "temperature": 0.7, "accuracy": 0.41 - s * 0.00015} for s in range(0, 201, 50)]
    _write_jsonl(path / "improve" / "evals.jsonl", evals)
    (path / "summary.json").write_text(json.dumps({"stages": stages, "seed": 7, "seconds": 4722.0}), encoding="utf-8")
    return path


PREFERENCES: dict[str, Any] = {
    "name": "preferences",
    "seed": 0,
    "model": {"source": "someone/base"},
    "task": {"chain": {"steps": [3, 6]}},
    "reward": "chain_gold",
    "eval": {"sets": {"test": {"task": {"chain": {"steps": [3, 6]}}, "n": 512}}},
    "stages": {
        "base": {"kind": "evaluate", "from": None},
        "annotate": {"kind": "annotate", "from": None, "judge": "chain_gold", "error": 0.125},
        "reward_model": {
            "kind": "reward_model", "from": None, "data": {"stage": "annotate"}, "loss": {"kind": "BradleyTerry"},
        },
        "ppo": {
            "kind": "ppo", "from": None, "reward": {"stage": "reward_model"}, "watch": {"gold": "chain_gold"},
            "kl_coef": 0.05,
        },
        "dpo": {"kind": "preference", "from": None, "data": {"stage": "annotate"}, "loss": DPO},
        "kto": {"kind": "preference", "from": None, "data": {"stage": "annotate"}, "loss": "KTO"},
    },
}  # fmt: skip
"""A third recipe: alternative stages that all start from the recipe's model; accuracy is a mean score from 0 to 2."""
# stage -> score, greedy score
SCORES = {"base": (0.7189, 0.707), "ppo": (1.4898, 1.7884), "dpo": (1.5664, 1.8276), "kto": (1.5339, 1.826)}


def write_preferences(path: Path) -> Path:
    """Writes a finished run of PREFERENCES; returns its directory."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump(PREFERENCES, sort_keys=False), encoding="utf-8")
    held_out = {"accuracy": 0.6054, "low": 0.5519, "high": 0.6565, "n": 332.0}
    held_out |= {"ece": 0.0526, "length_correlation": 0.6621}
    stages: dict[str, Any] = {
        "annotate": {"pairs": 3563, "equal": 4629, "agreement": 0.8689},
        "reward_model": {"pairs": 3231, "steps": 60, "held_out": held_out},
        "dpo": {"pairs": 3231, "held_out": {"accuracy": 0.7139, "n": 332.0}},
    }
    for name, (score, greedy) in SCORES.items():
        parts = {"score/right": score / 2, "score/form": 0.31, "score/brevity": 0.96}
        length = 6.0 if name == "base" else 22.0
        figures = {"accuracy": score, "low": score - 0.04, "high": score + 0.04, "length": length}
        settings = {"graded": True, "n": 512, "samples": 1, "temperature": 1.0, "greedy": {"accuracy": greedy}}
        stages.setdefault(name, {})["test"] = figures | parts | settings
    for name in PREFERENCES["stages"]:
        (path / name).mkdir(exist_ok=True)
        summary = stages[name] | {"seconds": 30.0}
        (path / name / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        _write_jsonl(path / name / "metrics.jsonl", _preference_metrics(name))
    for name, reward, right in (("base", 0.5, 0.0), ("dpo", 1.85, 1.0)):
        sample = {"set": "test", "task": "chain/1", "prompt": "1 a +1 =", "answer": "2", "text": "# 2", "length": 3}
        sample |= {"reward": reward, "parts": {"right": right, "form": 0.0}}
        (path / name / "samples.json").write_text(json.dumps([sample]), encoding="utf-8")
    bins, rows = [[0.52, 0.5, 120], [0.77, 0.74, 23]], [[0.02, 0.46, 0.602, 83], [0.46, 1.63, 0.759, 83]]
    detailed = json.dumps(held_out | {"bins": bins, "by_margin": rows})
    (path / "reward_model" / "held_out.json").write_text(detailed, encoding="utf-8")
    summary = {"stages": {n: stages[n] for n in PREFERENCES["stages"]}, "seed": 0, "seconds": 410.0}
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return path


def _preference_metrics(name: str) -> list[dict[str, Any]]:
    """Metrics of a stage of PREFERENCES: straight lines from 0."""
    ends = {
        "reward_model": {"loss": 0.6, "accuracy": 0.7, "margin": 0.2},
        "ppo": {"reward/mean": 0.9, "watched/gold": 1.5, "kl/response": 4.6, "critic/explained": 0.56},
        "dpo": {"loss": 0.6, "accuracy": 0.7, "rewards/margin": 0.3, "logps/chosen": -7.0, "logps/rejected": -11.0},
        "kto": {"loss": 0.49, "rewards/desirable": -0.5, "rewards/undesirable": -0.8},
    }
    return [{"step": s, **{k: v * s / 20 for k, v in ends[name].items()}} for s in range(1, 21)] if name in ends else []


# stage -> set -> accuracy, greedy accuracy, length, mixed
MEASURED = {
    "pretrain": {"easy": (0.2305, 0.2627, 5.83, 0.6128), "hard": (0.1904, 0.2031, 7.41, 0.7313)},
    "r1_zero": {"easy": (0.9629, 0.9697, 22.08, 0.6797), "hard": (0.8135, 0.8477, 40.92, 0.8418)},
    "sft": {"easy": (0.9814, 0.9893, 21.32, 0.0029), "hard": (0.9082, 0.9297, 42.11, 0.0117)},
    "rl": {"easy": (0.9941, 0.9961, 21.27, 0.0039), "hard": (0.9902, 0.9941, 42.36, 0.0098)},
}
SECONDS = {"pretrain": 84.1, "r1_zero": 29.3, "harvest": 14.8, "sft": 9.7, "rl": 38.1}
FUNNEL = {"sampled": 8192, "judged": 8192, "right": 7043, "clean": 1871, "distinct": 1602, "kept": 950}
PROBLEMS = 1024


def write(path: Path, recipe: dict[str, Any] = R1, seed: int = 0) -> Path:
    """Writes a finished run of `recipe`; returns its directory."""
    r = random.Random(seed)
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    stages = {name: _write_stage(r, path / name, name, spec["kind"]) for name, spec in recipe["stages"].items()}
    summary = {"stages": stages, "seed": recipe["seed"], "seconds": round(sum(SECONDS.values()), 1)}
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return path


def _write_stage(r: random.Random, path: Path, name: str, kind: str) -> dict[str, Any]:
    path.mkdir(exist_ok=True)
    summary: dict[str, Any] = {"seconds": SECONDS[name]}
    if kind == "rejection_sampling":
        summary |= {"funnel": FUNNEL, "easy": {"accuracy": 1.0, "length": 20.61, "mixed": 0.0, "n": 371}}
    else:
        summary |= {s: _figures(*MEASURED[name][s]) for s in MEASURED[name]}
        _write_jsonl(path / "metrics.jsonl", _rl_metrics(r, name) if kind == "rl" else _supervised_metrics(r, name))
        (path / "samples.json").write_text(json.dumps(_samples(name), ensure_ascii=False), encoding="utf-8")
        evals = [{"step": 36, "set": s, "temperature": 1.0, **summary[s]} for s in MEASURED[name]]
        _write_jsonl(path / "evals.jsonl", evals)
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return summary


def _figures(accuracy: float, greedy: float, length: float, mixed: float) -> dict[str, Any]:
    half_width = 1.96 * math.sqrt(accuracy * (1 - accuracy) / PROBLEMS) + 0.001
    settings = {"n": PROBLEMS, "samples": 1, "unjudged": 0, "temperature": 1.0}
    return {
        "accuracy": accuracy,
        "low": round(accuracy - half_width, 4),
        "high": round(min(1.0, accuracy + half_width), 4),
        "length": length,
        "mixed": mixed,
        "truncated": 0.001,
        **settings,
        "greedy": {
            "accuracy": greedy,
            "length": round(length - 0.2, 2),
            "mixed": mixed,
            **settings,
            "temperature": 0.0,
        },
    }


def _write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(x) + "\n" for x in records), encoding="utf-8")


def _supervised_metrics(r: random.Random, name: str) -> list[dict[str, Any]]:
    steps, low, high = (1050, 0.86, 3.93) if name == "pretrain" else (90, 0.11, 0.74)
    losses = [low + (high - low) * math.exp(-9 * s / steps) + r.gauss(0, 0.02) for s in range(1, steps + 1)]
    return [{"step": s, "time": 1e9 + s, "loss": round(loss, 4)} for s, loss in enumerate(losses, 1)]


def _rl_metrics(r: random.Random, name: str) -> list[dict[str, Any]]:
    """Metrics that follow a noisy sigmoid from a first to a last value."""
    first = name == "r1_zero"
    steps = 34 if first else 36
    ends = {
        "reward/mean": (0.24, 0.965) if first else (0.93, 0.992),
        "length/mean": (5.9, 22.1) if first else (30.2, 31.4),
        "worked": (0.21, 1.0) if first else (1.0, 1.0),
        "mixed": (0.61, 0.7) if first else (0.008, 0.006),
        "checks": (0.02, 0.01) if first else (0.0, 0.0),
        "entropy": (0.82, 0.21) if first else (0.09, 0.03),
        "kl_base": (0.001, 0.68) if first else (0.92, 0.99),
        "ratio/clipped": (0.0, 0.04) if first else (0.0, 0.01),
        "groups/no_signal": (0.02, 0.61) if first else (0.4, 0.86),
        "grad_norm": (0.4, 0.9) if first else (0.5, 0.2),
    }
    records = []
    for s in range(1, steps + 1):
        at = 1 / (1 + math.exp(-(s - steps * 0.4) / 3))
        row: dict[str, Any] = {"step": s, "time": 1e9 + s, "loss": r.gauss(0, 0.01), "tokens_per_s": r.gauss(2e4, 900)}
        for key, (a, b) in ends.items():
            value = a + (b - a) * at + r.gauss(0, 0.012) * max(a, b)
            row[key] = round(max(0.0, value if key == "length/mean" else min(value, 1.0)), 4)
        records.append(row)
    records[3]["entropy"] = None
    return records


def _samples(stage: str) -> list[dict[str, Any]]:
    rows = []
    for name, steps in (("easy", (3, 6)), ("hard", (8, 12))):
        for i, task in enumerate(Chain(steps=steps).tasks("test", 5)):
            r = random.Random(f"{name}{i}{stage}")
            text = _answer_text(r, str(task.prompt), stage)
            right = text.split()[-1] == task.answer
            rows.append(
                {
                    "set": name,
                    "task": task.id,
                    "prompt": task.prompt,
                    "answer": task.answer,
                    "text": text,
                    "reward": float(right),
                    "length": len(text.split()) + 1,
                    "stop": "eos",
                }
            )
    return rows


def _answer_text(r: random.Random, prompt: str, stage: str) -> str:
    """An answer in the stage's style: without working, worked in mixed notations, or worked in one notation."""
    words = prompt.split()
    if stage == "pretrain" and r.random() < 0.8:
        return f"# {r.randrange(10)}"
    value = int(words[0])
    out: list[str | int] = []
    for label, op in zip(words[1:-1:2], words[2:-1:2], strict=True):
        result = (value + int(op)) % 10
        if r.random() < (0.1 if stage == "pretrain" else 0.005):
            result = r.randrange(10)
        chinese = stage in ("pretrain", "r1_zero") and r.random() < 0.5
        step = (DIGITS_B[value], OPS_B[OPS_A.index(op)], DIGITS_B[result]) if chinese else (value, op, result)
        out += [label, *step]
        value = result
    return " ".join(map(str, [*out, "#", value]))


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
