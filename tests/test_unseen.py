"""Code and words of a user's that were not foreseen: each is a sentence, or does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import families as fam
import small_run
from engine_units import units_of
from ladder.base.errors import UserError
from ladder.contract.rollouts import InfraError, Outcome, Rollout, Score, Task
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import CrossEntropy
from ladder.pipeline import loop
from ladder.pipeline.build import rewards
from ladder.pipeline.recipe import ModelSpec, Recipe
from ladder.pipeline.rollout_log import watched
from ladder.rewards.combine import Combine, Part
from ladder.rewards.guarded import guard

WEB = {"kind": "pretrain", "data": {"web": {"documents": 60}}, "batch": 300, "by": "tokens"}
RL = {"kind": "rl", "from": "pretrain", "steps": 1, "prompts_per_step": 8, "group_size": 4}
RL |= {"sampling": {"max_tokens": 8}}
LOSS = """
from dataclasses import dataclass
@dataclass(frozen=True)
class L:
    unit: str = "token"
    needs: tuple = ("advantages",)
    entropy: bool = False
    def __call__(self, out, batch):
        return -batch.cols["advantages"] * out.logps, {"mark": out.logps.detach() * 0 + MARK}
"""


def recipe(tmp_path: Path, rl: dict[str, Any], **top: Any) -> Path:
    base = {"name": "one", "threads": 1, "model": {"source": "preset:chain"}, "task": "chain", "reward": "chain"}
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(base | top | {"stages": {"pretrain": WEB, "rl": RL | rl}}, sort_keys=False))
    return path


@pytest.mark.parametrize("by", ["file", "module"])
def test_a_loss_of_the_users_is_part_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    mine = tmp_path / "unseen_loss.py"
    mine.write_text(LOSS.replace("MARK", "1.0"))
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, {"loss": "unseen_loss.py:L" if by == "file" else "unseen_loss:L"})
    small_run.run(tmp_path / "out", recipe=path)
    assert small_run.plan(tmp_path / "out", recipe=path)["rl"] == "done"
    mine.write_text(LOSS.replace("MARK", "5.0"))
    assert small_run.plan(tmp_path / "out", recipe=path)["rl"] == "stale"


def test_a_file_that_is_edited_within_a_process_is_read_again(tmp_path: Path) -> None:
    mine = tmp_path / "edited.py"
    marks = []
    for mark in ("1.0", "5.0"):
        mine.write_text(LOSS.replace("MARK", mark))
        small_run.run(tmp_path / "out", recipe=recipe(tmp_path, {"loss": f"{mine}:L"}))
        rows = (tmp_path / "out" / "rl" / "metrics.jsonl").read_text()
        marks.append(yaml.safe_load(rows.splitlines()[0]).get("mark"))
    assert marks in ([1.0, 5.0], [None, None])  # None: no group of the step had a signal


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('boom')\nL = 1", "rl.loss: cannot import .*RuntimeError: boom"),
        ("import sys\nL = 1\nsys.exit(0)", "rl.loss: cannot import .*SystemExit"),
        ("def L(): pass", "rl.loss: .* is no dataclass"),
        ("class L: pass", "rl.loss: .* is no dataclass"),
        ("from dataclasses import dataclass\n@dataclass\nclass L: pass", "rl.loss: .* has no 'unit'"),
        (LOSS.replace('"token"', '"bogus"'), "counts in 'bogus', which is no unit"),
        (LOSS.replace('"token"', '"pair"'), "rl.loss: L needs pairs, which"),
        (LOSS.replace('"advantages",', '"mine",'), "rl.loss: L needs the column 'mine'"),
    ],
)
def test_a_loss_that_cannot_be_used_is_a_sentence_before_the_first_stage(
    tmp_path: Path, code: str, message: str
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(code)
    with pytest.raises(UserError, match=message):
        small_run.run(tmp_path / "out", recipe=recipe(tmp_path, {"loss": f"{mine}:L"}))
    assert not (tmp_path / "out").exists()


def test_a_task_by_path_executes_nothing_in_a_plan_however_it_is_written(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("raise RuntimeError('executed')\nclass L: pass\n")
    for task in ({f"{mine}:L": {}}, {"kind": f"{mine}:L"}, f"{mine}:L"):
        assert small_run.plan(tmp_path / "out", recipe=recipe(tmp_path, {"task": task}))["rl"] == "new"


def plan(spec: Any) -> rewards.RewardPlan:
    return rewards.parse(Recipe(model=ModelSpec(source="x"), stages={"rl": {}}), spec, "reward")


def test_a_weight_or_a_name_of_a_single_model_counts() -> None:
    specs: list[dict[str, Any]] = [{"weight": 100}, {"name": "x"}, {}]
    components = [plan({"stage": "rm"} | spec).components[0] for spec in specs]
    assert [one.plain for one in components] == [False, False, True]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (["math", "math"], "two rewards are called 'math'"),
        ([{"stage": "a", "name": "chain"}, "chain"], "two rewards are called 'chain'"),
        ({"kind": ["chain"]}, "a reward is named by a word"),
        ({"kind": "math", "weight": float("nan")}, "reward.weight: must be finite"),
    ],
)
def test_rewards_that_cannot_be_meant(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(spec)


def test_what_is_not_a_number_passes_no_check_of_the_first_update() -> None:
    nan = float("nan")
    for check in (
        lambda: loop.check_ratio({"first/ratio/mean": nan}),
        lambda: loop.check_ratio({"first/ratio/approx_kl": nan}),
        lambda: loop.check_kl({"first/kl": nan}),
        lambda: loop.check_reference(nan, 0.69),
    ):
        with pytest.raises(UserError, match="at the first update"):
            check()


def test_a_loss_returns_one_number_per_unit() -> None:
    class Scalar(CrossEntropy):
        def __call__(self, out: Any, batch: Any) -> Any:
            return super().__call__(out, batch)[0].mean(), {}

    engine = Engine(fam.build("llama"), Optim(lr=1e-3))
    with pytest.raises(ValueError, match=r"Scalar must return one number per token, shape \(\d+,\), .* shape \(\)"):
        engine.update(units_of(CrossEntropy()), Scalar())
    assert all(p.grad is None or not torch.count_nonzero(p.grad) for p in engine.model.parameters())


def test_scores_without_parts_are_logged_beside_others_and_failures_are_seen() -> None:
    rollout = Rollout(Task("t", "q"), [1, 2], [False, True], [0.0, -1.0], "x", "eos")

    def world(group: Any) -> list[Outcome]:
        return [Score(0.5) for _ in group]

    both = Combine((Part(guard(world, "mine")), Part(guard(lambda g: [1.0] * len(g), "one"), 2.0)))
    assert both([rollout]) == [Score(2.5, {"mine": 0.5, "one": 1.0})]
    assert watched("held", [[InfraError("down")]] * 3) == {"watched_failed/held": 1.0}
