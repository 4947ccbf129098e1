"""What it costs to add a thing from outside the tree: one file of one's own, named in the recipe, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import small_run
from ladder.base.errors import UserError
from ladder.base.files import read_json
from ladder.base.jsonl import read_lines

WEB = {"kind": "pretrain", "data": {"web": {"documents": 60}}, "batch": 300, "by": "tokens"}
RL = {"kind": "rl", "from": "pretrain", "steps": 2, "prompts_per_step": 16, "group_size": 4}
RL |= {"sampling": {"max_tokens": 10}, "reward": {"kind": "length_range", "max_tokens": 6}}
PAIRS = {"kind": "annotate", "from": "pretrain", "judge": {"kind": "length_range", "max_tokens": 6}}
PAIRS |= {"num_prompts": 48, "group_size": 4, "sampling": {"max_tokens": 10}}


def run(tmp_path: Path, code: str, stages: dict[str, Any], **top: Any) -> Path:
    """Runs stages of a recipe; "mine" in it is a file that holds `code`."""
    mine = tmp_path / "mine.py"
    mine.write_text(code)
    base = {"name": "one", "threads": 1, "model": {"source": "preset:chain"}, "task": "chain", "reward": "chain"}
    text = yaml.safe_dump(base | top | {"stages": stages}, sort_keys=False).replace("MINE", str(mine))
    (tmp_path / "one.yaml").write_text(text)
    small_run.run(tmp_path / "out", recipe=tmp_path / "one.yaml")
    assert small_run.plan(tmp_path / "out", recipe=tmp_path / "out" / "recipe.yaml") == dict.fromkeys(stages, "done")
    return tmp_path / "out"


LOSS = '''
from dataclasses import dataclass

@dataclass(frozen=True, slots=True)
class Mine:
    scale: float = 1.0
    unit: str = "token"
    needs: tuple = ("advantages",)
    entropy: bool = False

    def __call__(self, out, batch):
        return -self.scale * batch.cols["advantages"] * out.logps, {"mine": out.logps.detach()}
'''


def test_a_loss(tmp_path: Path) -> None:
    out = run(tmp_path, LOSS, {"pretrain": WEB, "rl": RL | {"loss": {"kind": "MINE:Mine", "scale": 0.5}}})
    rows = read_lines(out / "rl" / "metrics.jsonl")
    assert all("mine" in row and "probe/kl" in row for row in rows[:1])


PAIR_LOSS = '''
from dataclasses import dataclass
import torch

@dataclass(frozen=True)
class Mine:
    unit: str = "pair"
    needs: tuple = ("ref_logps",)
    entropy: bool = False

    def __call__(self, out, batch):
        chosen, rejected = batch.pairs(batch.sum(out.logps - batch.cols["ref_logps"]))
        return torch.nn.functional.softplus(rejected - chosen), {"margin": (chosen - rejected).detach()}
'''


def test_a_loss_on_pairs(tmp_path: Path) -> None:
    stage = {"kind": "preference", "from": "pretrain", "data": {"stage": "annotate"}, "batch": 8, "loss": "MINE:Mine"}
    out = run(tmp_path, PAIR_LOSS, {"pretrain": WEB, "annotate": PAIRS, "mine": stage})
    first = read_lines(out / "mine" / "metrics.jsonl")[0]
    assert first["first/loss"] == pytest.approx(0.6931472, abs=1e-6) and "margin" in first


CREDIT = '''
from dataclasses import dataclass
import torch
from ladder.contract.rollouts import Score
from ladder.credit.base import to_sample

@dataclass
class Mine:
    """The score itself, less a running mean that is remembered."""
    rate: float = 0.5
    mean: float = 0.0
    needs_reference: bool = False

    def __call__(self, groups, judged, ref_logps):
        units, total = [], 0.0
        for group, outcomes in zip(groups, judged):
            for rollout, outcome in zip(group, outcomes):
                if isinstance(outcome, Score) and rollout.length:
                    sample = to_sample(rollout)
                    sample.cols["advantages"] = torch.full((len(sample.tokens),), outcome.value - self.mean)
                    units.append(sample)
                    total += outcome.value
        self.mean += self.rate * (total / max(1, len(units)) - self.mean)
        return units, {"mine/mean": self.mean}

    def state(self):
        return {"mean": self.mean}

    def restore(self, state):
        self.mean = state["mean"]
'''


def test_a_credit(tmp_path: Path) -> None:
    out = run(tmp_path, CREDIT, {"pretrain": WEB, "rl": RL | {"credit": {"kind": "MINE:Mine", "rate": 0.25}}})
    first, second = (row["mine/mean"] for row in read_lines(out / "rl" / "metrics.jsonl"))
    assert 0 < first < 1 and second != first


REWARD = '''
def mine(group):
    return [float(len(r.text.split()) < 6) for r in group]
'''


def test_a_reward(tmp_path: Path) -> None:
    reward = {"kind": "user", "function": "MINE:mine", "name": "brief"}
    out = run(tmp_path, REWARD, {"pretrain": WEB, "rl": RL | {"reward": reward}})
    assert 0 < read_lines(out / "rl" / "metrics.jsonl")[0]["reward/brief"] < 1


WORLD = '''
from typing import ClassVar
from pydantic.dataclasses import dataclass
from ladder.contract.rollouts import Score, Task
from ladder.tasks.chain import words
from ladder.tasks.world import SpecialTokens, World

def starts(group):
    return [Score(float(r.text.startswith(str(r.task.answer)))) for r in group]

WORLD = World(
    name="echo",
    rewards={"echo": starts},
    filters={"brief": lambda r: r.length < 6},
    figures=lambda texts: {"words": sum(len(t.split()) for t in texts) / max(1, len(texts))},
    tokenizer=words.tokenizer,
    special=SpecialTokens("<s>", "</s>", "<pad>"),
)

@dataclass(frozen=True)
class Echo:
    size: int = 10
    world: ClassVar[World] = WORLD
    splits: ClassVar[tuple[str, ...]] = ("train", "test")

    def tasks(self, split, n=None):
        return [Task(f"{split}/{i}", f"{i} =", str(i)) for i in range(min(self.size, n or self.size))]
'''


def test_a_world(tmp_path: Path) -> None:
    """Its tasks, the tokenizer of a model from a preset, its rewards, filters and figures."""
    rl = {k: v for k, v in RL.items() if k != "reward"} | {"prompts_per_step": 5}
    select = {"kind": "rejection_sampling", "from": "pretrain", "num_prompts": 10, "at_least": 0.0}
    select |= {"filters": ["brief"], "sampling": {"max_tokens": 10}}
    task = {"kind": "MINE:Echo", "size": 10}
    evaluation = {"sets": {"echo": {"task": task}}, "sampling": {"max_tokens": 6}, "temperatures": [1.0]}
    stages = {"pretrain": WEB, "select": select, "rl": rl}
    out = run(tmp_path, WORLD, stages, task=task, reward="echo", eval=evaluation)
    assert "words" in read_lines(out / "rl" / "metrics.jsonl")[0]
    assert "words" in read_json(out / "rl" / "summary.json")["echo"]
    assert all(sum(row["mask"]) < 6 for row in read_lines(out / "select" / "data.jsonl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "ehco"}, "rl.reward: no reward is called 'ehco', did you mean 'echo'"),
        ({"task": {"kind": "MINE:Ehco"}}, "defines no 'Ehco'"),
        ({"task": {"kind": "MINE:Echo", "sise": 3}}, "task.sise: unknown key, did you mean 'size'"),
    ],
)
def test_mistakes_about_a_world_of_ones_own(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rl = {k: v for k, v in RL.items() if k != "reward"} | {"prompts_per_step": 5}
    top = {"task": {"kind": "MINE:Echo"}, "reward": "echo"} | change
    with pytest.raises(UserError, match=message):
        run(tmp_path, WORLD, {"pretrain": WEB, "rl": rl}, **top)
    assert not (tmp_path / "out").exists()
