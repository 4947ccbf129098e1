"""That training moves the number it is meant to move: small models, a clear margin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from ladder.base.files import read_json
from ladder.base.jsonl import read_lines
from ladder.engine.engine import Engine
from ladder.models.load import load_model
from ladder.pipeline.kinds.supervised import WebData, web_samples
from small_run import run

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
WEB = {"documents": 8000, "worked": 0.0, "lengths": [1, 1]}
JUDGE = '''\
"""An easy reward: the share of an answer's words that are the digit 7."""


def sevens(completions, **_):
    return [c.split().count("7") / max(1, len(c.split())) for c in completions]
'''


def recipe(tmp_path: Path, seed: int, **stages: Any) -> Path:
    path = tmp_path / "learn.yaml"
    top = {"seed": seed, "threads": 1, "model": {"source": "preset:chain", "config": SMALL}, "task": "chain"}
    path.write_text(yaml.safe_dump(top | {"stages": stages}, sort_keys=False))
    return path


def nll(model: Path) -> float:
    """Of held-out text of the same writers, in nats a token."""
    loaded = load_model(str(model))
    held_out = web_samples(WebData(web=WEB | {"documents": 300}), 12345, "web")
    loaded.model.requires_grad_(False)
    columns = Engine(loaded.model, None).forward(held_out)
    logps = torch.cat([c["logps"][s.mask] for c, s in zip(columns, held_out, strict=True)])
    return -float(logps.mean())


def imitate(tmp_path: Path, seed: int) -> tuple[float, float]:
    """NLL after two steps and after an epoch."""
    optim = {"lr": 4e-3, "schedule": "cosine", "warmup": 0.05}
    stage = {"kind": "sft", "data": {"web": WEB}, "batch": 64, "optim": optim}
    run(tmp_path / "out", recipe=recipe(tmp_path, seed, first=stage | {"steps": 2}, whole=stage))
    return nll(tmp_path / "out" / "first" / "model"), nll(tmp_path / "out" / "whole" / "model")


def reinforce(tmp_path: Path, seed: int) -> list[float]:
    """The mean reward of every step."""
    (tmp_path / "judge.py").write_text(JUDGE)
    stage = {
        "kind": "rl",
        "reward": {"user": {"function": f"{tmp_path / 'judge.py'}:sevens"}},
        "steps": 24,
        "prompts_per_step": 4,
        "group_size": 16,
        "sampling": {"max_tokens": 6},
        "optim": {"lr": 1e-2},
        "measure_kl": False,
    }
    run(tmp_path / "out", recipe=recipe(tmp_path, seed, rl=stage))
    assert read_json(tmp_path / "out" / "rl" / "summary.json")["steps"] == 24
    return [r["reward/mean"] for r in read_lines(tmp_path / "out" / "rl" / "metrics.jsonl")]


def test_imitation_lowers_the_nll_of_held_out_text(tmp_path: Path) -> None:
    """Uniform over 51 words is 3.93 nats; `# digit </s>` with an answer half known is far below."""
    early, late = imitate(tmp_path, seed=0)
    assert early > 3.0
    assert late < 1.2


def test_grpo_raises_an_easy_reward(tmp_path: Path) -> None:
    """One word in 51 at first; the policy finds out which one pays."""
    rewards = reinforce(tmp_path, seed=0)
    assert sum(rewards[:2]) / 2 < 0.1
    assert sum(rewards[-2:]) / 2 > 0.8
