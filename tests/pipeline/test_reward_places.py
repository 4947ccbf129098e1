"""A reward is one thing wherever a recipe names it: reward models and functions of the user's judge in every place, and
a plan executes none of the user's code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import small_run
from ladder.base.errors import UserError
from ladder.base.files import read_json
from ladder.base.jsonl import read_lines
from ladder.contract.rollouts import Rollout, Score, Task
from ladder.rewards import build
from ladder.rewards.judge import judge

WEB = {"kind": "pretrain", "data": {"web": {"documents": 60}}, "batch": 300, "by": "tokens"}
SMALL = {"from": "pretrain", "num_prompts": 16, "group_size": 4, "sampling": {"max_tokens": 12}}
RL = {"kind": "rl", "from": "pretrain", "steps": 1, "prompts_per_step": 4, "group_size": 4}
RL |= {"sampling": {"max_tokens": 12}}
MODEL = {"stage": "rm"}


def recipe(tmp_path: Path, stages: dict[str, Any], **top: Any) -> Path:
    base = {"name": "one", "threads": 1, "model": {"source": "preset:chain"}, "task": "chain", "reward": "chain"}
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(base | top | {"stages": stages}, sort_keys=False))
    return path


def judged_by(reward: Any) -> dict[str, Any]:
    return {"eval": {"sets": {"a": {"task": "chain", "reward": reward}}}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with a reward model."""
    place = tmp_path_factory.mktemp("made")
    judged = {"kind": "length_range", "max_tokens": 6}
    stages = {
        "pretrain": WEB,
        "annotate": SMALL | {"kind": "annotate", "judge": judged, "num_prompts": 64},
        "rm": {"kind": "reward_model", "from": "pretrain", "data": {"stage": "annotate"}, "batch": 8},
    }
    small_run.run(place / "out", recipe=recipe(place, stages))
    return place / "out"


def go(made: Path, tmp_path: Path, stages: dict[str, Any], **top: Any) -> Path:
    """Runs further stages after those of `made`; returns the directory of the run."""
    before = yaml.safe_load((made / "recipe.yaml").read_text())["stages"]
    shutil.copytree(made, tmp_path / "out")
    small_run.run(tmp_path / "out", recipe=recipe(tmp_path, before | stages, **top))
    return tmp_path / "out"


def test_a_reward_model_selects_answers(made: Path, tmp_path: Path) -> None:
    stage = SMALL | {"kind": "rejection_sampling", "reward": MODEL, "best": True, "at_least": -100.0}
    out = go(made, tmp_path, {"pick": stage})
    rows = read_lines(out / "pick" / "data.jsonl")
    assert len(rows) > 4 and len({round(row["reward"], 5) for row in rows}) > 1, "scores are no rights and wrongs"
    assert "rm" in read_json(out / "pick" / "stage.json")["parents"]


def test_a_reward_model_annotates(made: Path, tmp_path: Path) -> None:
    out = go(made, tmp_path, {"again": SMALL | {"kind": "annotate", "judge": MODEL, "error": 0.0}})
    assert read_lines(out / "again" / "data.jsonl")
    assert "rm" in read_json(out / "again" / "stage.json")["parents"]


def test_a_reward_model_is_watched_and_judges_a_set_from_its_stage_on(made: Path, tmp_path: Path) -> None:
    sets = {"scored": {"task": "chain", "n": 8, "reward": MODEL}, "right": {"task": "chain", "n": 8}}
    before = yaml.safe_load((made / "recipe.yaml").read_text())["stages"]
    evaluation = {"sets": sets, "temperatures": [1.0], "sampling": {"max_tokens": 8}}
    path = recipe(tmp_path, before | {"rl": RL | {"watch": {"proxy": MODEL}}}, eval=evaluation)
    said = small_run.run(tmp_path / "out", recipe=path).text
    assert "scored is not evaluated here: its judge, rm, is trained later" in said
    out = tmp_path / "out"
    assert set(read_json(out / "pretrain" / "summary.json")) & {*sets} == {"right"}
    assert set(read_json(out / "rl" / "summary.json")) & {*sets} == {*sets}
    assert read_json(out / "rl" / "summary.json")["scored"]["graded"] is True
    assert "watched/proxy" in read_lines(out / "rl" / "metrics.jsonl")[0]


def test_a_reward_model_at_the_top_of_the_recipe(made: Path, tmp_path: Path) -> None:
    out = go(made, tmp_path, {"rl": RL}, reward=MODEL)
    assert "rm" in read_json(out / "rl" / "stage.json")["parents"]


@pytest.mark.parametrize(
    ("stages", "top", "message"),
    [
        ({}, judged_by("chian"), "eval.sets.a.reward: no reward is called"),
        ({}, judged_by({"stage": "rm"}), "there is no stage 'rm'"),
        ({}, judged_by({"stage": "pretrain"}), "a reward model is needed"),
        ({"rl": RL | {"watch": {"x": {"stage": "later"}}}}, {}, "'later' is not an earlier stage"),
        ({"rl": RL | {"reward": {"kind": "user", "function": "gone.py:f"}}}, {}, "rl.reward: there is no file"),
        ({"rl": RL | {"loss": "gone.py:Loss"}}, {}, "rl.loss: there is no file 'gone.py'"),
    ],
)
def test_wrong_names_are_found_before_anything_starts(
    tmp_path: Path, stages: dict[str, Any], top: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        small_run.run(tmp_path / "out", recipe=recipe(tmp_path, {"pretrain": WEB} | stages, **top))
    assert not (tmp_path / "out").exists()


def test_a_plan_executes_no_code_of_the_users(tmp_path: Path) -> None:
    """Nor does a function that cannot be used pass before the first stage."""
    mine = tmp_path / "mine.py"
    trace = tmp_path / "trace"
    mine.write_text(
        f"open({str(trace)!r}, 'a').write('x')\n"
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Loss:\n"
        "    unit: str = 'token'\n"
        "    needs: tuple = ('advantages',)\n"
        "    entropy: bool = False\n"
        "def judge(a, b, c, d, e): return 1\n"
    )
    user = {"kind": "user", "function": f"{mine}:judge"}
    path = recipe(tmp_path, {"pretrain": WEB, "rl": RL | {"reward": user, "loss": f"{mine}:Loss"}})
    assert small_run.plan(tmp_path / "out", recipe=path) == {"pretrain": "new", "rl": "new"}
    assert not trace.exists()
    with pytest.raises(UserError, match=r"rl.reward: the reward function .* cannot be used"):
        small_run.run(tmp_path / "out", recipe=path)
    assert trace.exists() and not (tmp_path / "out").exists()


def test_a_name_that_the_file_does_not_define(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def judge(group): return [1.0] * len(group)\n")
    reward = {"kind": "user", "function": f"{mine}:jugde"}
    with pytest.raises(UserError, match=r"rl.reward: .*mine.py defines no 'jugde'. Hint: it defines: judge"):
        small_run.plan(tmp_path / "out", recipe=recipe(tmp_path, {"pretrain": WEB, "rl": RL | {"reward": reward}}))


def test_groups_are_judged_in_parallel(tmp_path: Path) -> None:
    """From the second call on the function waits until another call is under way; one after another, it would wait in
    vain and be ended at its deadline."""
    mine = tmp_path / "mine.py"
    mine.write_text(f'''
import os, pathlib, time, uuid
HERE = pathlib.Path({str(tmp_path)!r})
def judge(group):
    first = not (HERE / "first").exists()
    (HERE / "first").touch()
    if first:
        time.sleep(0.1)
        return [1.0] * len(group)
    mine = HERE / f"{{uuid.uuid4()}}.call"
    mine.touch()
    while len(list(HERE.glob("*.call"))) < 2:
        time.sleep(0.01)
    return [float(r.text) for r in group]
''')
    reward = build({"kind": "user", "function": f"{mine}:judge", "deadline_s": 20, "concurrency": 2})
    groups = [[Rollout(Task("t", "q"), [1, 2], [False, True], [0.0, -1.0], str(i), "eos")] for i in range(5)]
    judged = judge(reward, groups)
    assert [[o.value for o in group if isinstance(o, Score)] for group in judged] == [[1.0], [1], [2], [3], [4]]
