"""Credits compose: several critics beside each other, told apart by their columns, and a Lagrangian that wraps credits
with a cost, written here and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import families as fam
from ladder.contract.rollouts import Groups, Judged, Outcome, Rollout, Sampling, Score, Task
from ladder.contract.training import Sample, Unit
from ladder.credit.base import Credit, Credited
from ladder.credit.critic import CriticCredit
from ladder.credit.group import GroupCredit
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import PolicyClip, ValueClip
from ladder.models.load import LoadedModel, load_model, save_model
from ladder.rollout.collect import Collector
from ladder.rollout.scripted import ScriptedSampler
from ladder.signals.rewards import Rewards
from ladder.train import Learner, train

TOKENIZER = fam.tokenizer()


def judge(group: Sequence[Rollout]) -> list[Outcome]:
    """"w43 w50": a score of 3, and as a cost the number of words."""
    return [Score(float(r.text.split()[0][1:]) - 40, {"cost": float(len(r.text.split()))}) for r in group]


@dataclass
class Lagrangian:
    """(A_reward - lambda A_cost) / (1 + lambda); lambda rises while the mean cost is above its limit (Dai et al. 2023,
    arXiv:2310.12773). It keeps the columns of both, so that each critic learns its own returns."""

    reward: Credit
    cost: Credit
    limit: float
    rate: float = 0.5
    multiplier: float = 1.0
    needs_reference: bool = field(default=False)

    def __call__(self, groups: Groups, judged: Judged, ref_logps: Sequence[Tensor] | None) -> Credited:
        costs = [[replace(o, value=o.parts["cost"]) if isinstance(o, Score) else o for o in g] for g in judged]
        units, figures = self.reward(groups, judged, ref_logps)
        costly, more = self.cost(groups, costs, ref_logps)
        for unit, other in zip(units, costly, strict=True):
            assert isinstance(unit, Sample) and isinstance(other, Sample)
            mixed = unit.cols["advantages"] - self.multiplier * other.cols["advantages"]
            unit.cols |= {n: c for n, c in other.cols.items() if n not in unit.cols}
            unit.cols["advantages"] = mixed / (1 + self.multiplier)
        mean = sum(o.value for g in costs for o in g if isinstance(o, Score)) / sum(map(len, costs))
        self.multiplier = max(0.0, self.multiplier + self.rate * (mean - self.limit))
        return units, figures | more | {"lagrangian/multiplier": self.multiplier}

    def state(self) -> dict[str, Any]:
        return {"multiplier": self.multiplier, "reward": self.reward.state(), "cost": self.cost.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.multiplier = state["multiplier"]
        self.reward.restore(state["reward"])
        self.cost.restore(state["cost"])


def constant(value: float) -> Any:
    def forward(units: Sequence[Unit]) -> list[dict[str, Tensor]]:
        return [{"values": torch.where(u.mask, value, 0.0)} for u in units if isinstance(u, Sample)]

    return forward


def signal(credit: Credit) -> Rewards:
    tasks = [Task(f"t{i}", f"w{20 + i}") for i in range(2)]
    script = {"w20": ["w42", "w43 w50"], "w21": ["w41 w50 w51", "w40"]}
    sampler = ScriptedSampler(script, TOKENIZER)
    collect = Collector(sampler, lambda p: TOKENIZER.encode(p), 2, Sampling(8), 0, "train")
    return Rewards(lambda step: tasks, collect, judge, credit, max_failed=1.0)


def test_a_lagrangian_by_hand() -> None:
    groups = {"drop_zero_variance": False}
    credit = Lagrangian(GroupCredit("group_mean", **groups), GroupCredit("group_mean", **groups), limit=1.0)
    made = signal(credit)
    units = [u for u in next(made.batches()) if isinstance(u, Sample)]
    # rewards 2, 3 | 1, 0 and costs 1, 2 | 3, 1: (A_r - A_c) / 2
    want = [(-0.5 + 0.5) / 2, (0.5 - 0.5) / 2, (0.5 - 1) / 2, (-0.5 + 1) / 2]
    assert [float(u.cols["advantages"][0]) for u in units] == pytest.approx(want)
    assert made.metrics()["lagrangian/multiplier"] == pytest.approx(1 + 0.5 * (7 / 4 - 1))
    again = Lagrangian(GroupCredit("group_mean", **groups), GroupCredit("group_mean", **groups), limit=1.0)
    other = signal(again)
    other.restore(json.loads(json.dumps(made.state())))
    assert again.multiplier == credit.multiplier and other.step == 1


def test_two_critics_learn_returns_of_their_own() -> None:
    """The columns that one critic's loss reads are not those of the other's."""
    reward = CriticCredit(critic=constant(0.0), lam=1.0, whitened=False)
    cost = CriticCredit(
        critic=constant(0.0), lam=1.0, whitened=False, name="cost", returns="returns_cost", old_values="values_cost"
    )
    made = signal(Lagrangian(reward, cost, limit=1.0))
    first = next(iter(made.batches()))[1]
    assert isinstance(first, Sample)
    assert first.cols["returns"][first.mask].tolist() == [3.0] * 3
    assert first.cols["returns_cost"][first.mask].tolist() == [2.0] * 3
    assert {"critic/explained", "cost/explained"} <= made.metrics().keys()


def test_any_number_of_critics_train_beside_the_policy(tmp_path: Path) -> None:
    """One loop, three learners; each critic approaches its own returns."""
    save_model(LoadedModel(fam.build("llama"), TOKENIZER, "tiny", (fam.EOS,)), tmp_path / "lm")

    def critic(name: str, **columns: str) -> Learner:
        engine = Engine(load_model(str(tmp_path / "lm"), scalar=True).model, Optim(lr=1e-2))
        return Learner(engine, ValueClip(clip=None, **columns), name=name)

    reward, cost = critic("reward_critic"), critic("cost_critic", returns="returns_cost", old_values="values_cost")
    plain = {"lam": 1.0, "whitened": False}
    credit = Lagrangian(
        CriticCredit(critic=reward.engine.forward, **plain),
        CriticCredit(
            critic=cost.engine.forward, name="cost", returns="returns_cost", old_values="values_cost", **plain
        ),
        limit=1.0,
    )
    rows: list[dict[str, float]] = []
    policy = Learner(Engine(fam.build("llama"), Optim(lr=1e-4)), PolicyClip())
    train(signal(credit), [policy, reward, cost], steps=12, on_step=lambda _, figures: bool(rows.append(figures)))
    for name in ("reward_critic", "cost_critic"):
        errors = [row[f"{name}/values/error"] for row in rows]
        assert errors[-1] < errors[0] / 4, name
    returns = (2, 2, 3, 3, 3, 1, 1, 1, 1, 0, 0)  # of every token
    assert rows[-1]["reward_critic/returns/mean"] == pytest.approx(sum(returns) / 11, abs=1e-4)
    assert rows[-1]["reward_critic/values/mean"] != pytest.approx(rows[-1]["cost_critic/values/mean"], abs=0.05)
