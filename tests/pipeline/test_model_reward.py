"""Reward models as a reward: several as one, beside other rewards, from elsewhere, and the wrong ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import small_run
from ladder.base.errors import UserError
from ladder.base.files import read_json
from ladder.base.jsonl import read_lines
from ladder.contract.rollouts import Rollout, Score, Task
from ladder.models.load import load_model
from ladder.pipeline.build import rewards
from ladder.pipeline.build.rewards import PathScorer
from ladder.pipeline.recipe import ModelSpec, Recipe
from ladder.rewards.judge import judge
from ladder.signals.model_reward import Aggregate, Member, ModelReward

RL = {"kind": "rl", "from": "pretrain", "steps": 1, "prompts_per_step": 4, "group_size": 4}
RL |= {"sampling": {"max_tokens": 12}}


def rollout(length: int, group: int = 0) -> Rollout:
    tokens = [1, *range(5, 5 + length)]
    return Rollout(Task("t", "q", None), tokens, [False] + [True] * length, [0.0] * len(tokens), "x", "eos", group, 0)


def member(name: str, factor: float, calls: list[int] | None = None) -> Member:
    """Scores `factor` times the answer's length."""

    def forward(units: Any) -> list[dict[str, torch.Tensor]]:
        if calls is not None:
            calls.append(len(units))
        return [{"values": torch.tensor([0.0, factor * (len(u.tokens) - 2)])} for u in units]

    return Member(name, forward, 0)


@pytest.mark.parametrize(("aggregate", "wanted"), [("mean", 2.0), ("min", 1.0), ("uncertainty", 2.0 - 3.0 * 2 / 3)])
def test_an_ensemble_of_three_by_hand(aggregate: Aggregate, wanted: float) -> None:
    """The scores of an answer of one token are 1, 2 and 3: mean 2, minimum 1, variance 2/3."""
    several = ModelReward((member("a", 1), member("b", 2), member("c", 3)), aggregate, 3.0)
    (got,) = several([rollout(1)])
    assert isinstance(got, Score) and got.value == pytest.approx(wanted)
    assert got.parts == pytest.approx({"a": 1, "b": 2, "c": 3, "disagreement": 1.0})


def test_beside_other_rewards_the_parts_carry_the_name() -> None:
    (got,) = ModelReward((member("a", 1), member("b", 3)), name="safe")([rollout(1)])
    assert isinstance(got, Score)
    assert got.parts == pytest.approx({"safe": 2, "safe/a": 1, "safe/b": 3, "safe/disagreement": 2**0.5})


def test_one_forward_call_scores_all_groups() -> None:
    calls: list[int] = []
    groups = [[rollout(i + 1, g) for i in range(g + 1)] for g in range(3)]
    judged = judge(ModelReward((member("a", 1, calls),)), groups)
    assert calls == [6] and [[o.value for o in g if isinstance(o, Score)] for g in judged] == [[1], [1, 2], [1, 2, 3]]
    assert judge(lambda group: [Score(len(group))] * len(group), groups)[1] == [Score(2), Score(2)]


def test_which_stages_and_files_are_read(tmp_path: Path) -> None:
    recipe = Recipe(model=ModelSpec(source="x"), stages={"rl": {}})

    def parsed(spec: Any) -> rewards.RewardPlan:
        return rewards.parse(recipe, spec, "reward")

    assert parsed([{"ensemble": ["a", {"model": str(tmp_path)}]}, {"model": "hub/name"}]).files == [tmp_path]
    length = {"kind": "length_range", "max_tokens": 3}
    both = parsed([{"stage": "a", "weight": 2.0}, length, {"ensemble": ["b", {"model": "x"}, "c"]}])
    assert both.stages == ["a", "b", "c"] and not parsed("math").stages


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and two reward models trained from it."""
    scorer = {"kind": "reward_model", "from": "pretrain", "data": {"stage": "annotate"}, "batch": 8}
    return go(
        tmp_path_factory.mktemp("models"),
        {
            "pretrain": {"kind": "pretrain", "data": {"web": {"documents": 1500}}, "batch": 600, "by": "tokens"},
            "annotate": {"kind": "annotate", "from": "pretrain", "judge": "chain_gold", "num_prompts": 64},
            "rm_a": scorer,
            "rm_b": scorer | {"optim": {"lr": 1e-3}},
        },
    )


def go(directory: Path, stages: dict[str, Any], **top: Any) -> Path:
    recipe: dict[str, Any] = {"name": "r", "threads": 1, "model": {"source": "preset:chain"}, "task": "chain"}
    path = directory / "r.yaml"
    path.write_text(yaml.safe_dump(recipe | {"reward": "chain"} | top | {"stages": stages}, sort_keys=False))
    small_run.run(directory / "out", recipe=path)
    return directory / "out"


def one(directory: Path, made: Path, reward: Any) -> dict[str, float]:
    """The figures of one step of a stage with this reward."""
    stage = {k: v for k, v in RL.items() if k != "from"} | {"reward": reward}
    out = go(directory, {"rl": stage}, model={"source": str(made / "pretrain" / "model")})
    return read_lines(out / "rl" / "metrics.jsonl")[0]


def test_an_ensemble_logs_its_members(made: Path, tmp_path: Path) -> None:
    models = [{"model": str(made / name / "model")} for name in ("rm_a", "rm_b")]
    got = one(tmp_path, made, {"ensemble": models, "aggregate": "min"})
    assert got["reward/disagreement"] > 0
    assert got["reward/mean"] <= min(got["reward/rm_a"], got["reward/rm_b"])
    (tmp_path / "2").mkdir()
    alone = one(tmp_path / "2", made, models[1])
    assert alone["reward/mean"] >= got["reward/mean"], "the least of two is no more than either"


def test_members_of_the_same_name_get_distinct_names(made: Path, tmp_path: Path) -> None:
    """The same stage of two runs."""
    for run, name in (("1", "rm_a"), ("2", "rm_b")):
        shutil.copytree(made / name / "model", tmp_path / run / "reward_model" / "model")
    models = [{"model": str(tmp_path / run / "reward_model" / "model")} for run in "12"]
    got = one(tmp_path, made, {"ensemble": models})
    both = [got["reward/reward_model_1"], got["reward/reward_model_2"]]
    assert both[0] != both[1] and got["reward/mean"] == pytest.approx(sum(both) / 2, abs=1e-5)


def test_a_rollout_gets_the_score_that_plain_transformers_gives(made: Path) -> None:
    source = str(made / "rm_b" / "model")
    policy = load_model(str(made / "pretrain" / "model"))
    place = rewards.Place(Recipe(model=ModelSpec(source="x"), stages={"rl": {}}), {}, policy)
    scorer = rewards.member(place, PathScorer(model=source), "rl.reward")
    ours = scorer.scores([rollout(n) for n in (1, 9, 4)])
    theirs: Any = AutoModelForSequenceClassification.from_pretrained(source)
    with torch.no_grad():
        alone = [float(theirs(torch.tensor([rollout(n).tokens])).logits) for n in (1, 9, 4)]
    assert ours.tolist() == pytest.approx(alone, abs=1e-5) and min(map(abs, alone)) > 1e-4


def test_beside_another_reward(made: Path, tmp_path: Path) -> None:
    model = {"model": str(made / "rm_b" / "model"), "weight": 2.0, "name": "proxy"}
    length = {"kind": "length_range", "max_tokens": 3}
    got = one(tmp_path, made, [model, length | {"weight": 0.5}])
    assert got["reward/mean"] == pytest.approx(2 * got["reward/proxy"] + 0.5 * got["reward/length_range"], abs=1e-5)


def test_stages_of_the_same_run(made: Path, tmp_path: Path) -> None:
    stages = yaml.safe_load((made / "recipe.yaml").read_text())["stages"]
    shutil.copytree(made, tmp_path / "out")
    rl = RL | {"reward": {"ensemble": ["rm_a", "rm_b"], "aggregate": "uncertainty"}}
    out = go(tmp_path, stages | {"rl": rl})
    found = read_lines(out / "rl" / "metrics.jsonl")[0]
    assert np.isfinite(found["reward/rm_a"]) and np.isfinite(found["reward/rm_b"])
    assert set(read_json(out / "rl" / "stage.json")["parents"]) == {"pretrain", "rm_a", "rm_b"}


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"ensemble": ["rm_a"]}, r"stages.rl.reward.ensemble: .*at least 2"),
        ({"ensemble": 3}, r"stages.rl.reward.ensemble: "),
        ({"ensemble": [{"model": "x"}, "a", {"model": "x"}]}, r"stages.rl.reward.ensemble: has a member twice"),
        ({"ensemble": ["a", "b"], "agregate": "min"}, r"reward.agregate: unknown key, did you mean 'aggregate'"),
        ({"stage": "nowhere"}, "'nowhere' is not an earlier stage"),
        ([{"stage": "pretrain", "weight": "much"}], r"stages.rl.reward\[0\].weight: must be a number"),
        ([{"stage": "pretrain"}, {"kind": "lenght"}], "did you mean 'length'"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path: Path, reward: Any, message: str) -> None:
    web = {"kind": "pretrain", "data": {"web": {"documents": 60}}, "batch": 300, "by": "tokens"}
    with pytest.raises(UserError, match=message):
        go(tmp_path, {"pretrain": web, "rl": RL | {"reward": reward}})
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_score_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"rl.reward: .* has no score"):
        one(tmp_path, made, {"model": str(made / "pretrain" / "model")})
    three = AutoModelForSequenceClassification.from_pretrained(made / "pretrain" / "model", num_labels=3)
    shutil.copytree(made / "pretrain" / "model", tmp_path / "three")
    three.save_pretrained(tmp_path / "three")
    (tmp_path / "2").mkdir()
    with pytest.raises(UserError, match=r"rl.reward: .* is a classifier with 3 labels; a score head gives one number"):
        one(tmp_path / "2", made, {"model": str(tmp_path / "three")})
    monkeypatch.setattr("ladder.pipeline.build.models.same_tokens", lambda *_: False)
    (tmp_path / "3").mkdir()
    with pytest.raises(UserError, match=r"^rl.reward: .*has another tokenizer than the policy"):
        one(tmp_path / "3", made, {"model": str(made / "rm_a" / "model")})


def test_a_reward_model_without_its_score(made: Path, tmp_path: Path) -> None:
    """It must not count as one that scores everything 0."""
    broken = tmp_path / "broken"
    shutil.copytree(made / "rm_a" / "model", broken)
    weights = load_file(broken / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"rl.reward: .*lack 1 of its weights \(score.weight.*sequence classifier"):
        one(tmp_path, made, {"model": str(broken)})


def test_a_replaced_reward_model_changes_the_identity(made: Path, tmp_path: Path) -> None:
    own = tmp_path / "rm"
    shutil.copytree(made / "rm_a" / "model", own)
    one(tmp_path, made, {"model": str(own)})
    assert small_run.plan(tmp_path / "out", recipe=tmp_path / "r.yaml") == {"rl": "done"}
    shutil.rmtree(own)
    shutil.copytree(made / "rm_b" / "model", own)
    assert small_run.plan(tmp_path / "out", recipe=tmp_path / "r.yaml") == {"rl": "stale"}
