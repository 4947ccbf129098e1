"""The experiment on what DPO cannot discover: verdicts both ways, its figure, its costs, and the pairs it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import small_run
from ladder.base.errors import UserError
from ladder.base.files import read_json, write_json, write_lines
from ladder.base.jsonl import read_lines
from ladder.lab import run as lab
from ladder.lab.budget import drawn_tokens, trained_tokens
from ladder.lab.discovery import EXPERIMENT, KS, ROADS, measure
from ladder.lab.experiments import find
from ladder.pipeline import recipe as recipes
from ladder.pipeline.run import plan
from ladder.tasks.chain.answers import is_worked

RIGHT = {"base": 0.2, "dpo_offhand": 0.2, "dpo_all": 0.8, "rejection": 0.5, "grpo": 0.9}


def measured(seed: int, **right: float) -> dict[str, Any]:
    """As the experiment reads it from a run; a little different from seed to seed."""
    every = RIGHT | right
    return {
        road: {
            "accuracy": every[road] + 0.01 * seed,
            "greedy": every[road],
            "length": 5.0 + 20 * every[road],
            "worked": max(0.0, every[road] - 0.05) + 0.01 * seed * (road == "base"),
            **{f"pass@{k}": 1 - (1 - every[road]) ** k for k in KS},
            "drawn": 300_000,
            "trained": 200_000,
        }
        for road in ROADS
    }


def test_it_holds_when_selection_wins_and_does_not_when_it_does_not() -> None:
    found = EXPERIMENT.verdict([measured(s) for s in range(3)])
    assert found.holds and found.effect.mean == pytest.approx(0.7)
    assert "GRPO at 91% right" in found.sentence and found.table[5][0] == "GRPO"
    assert not EXPERIMENT.verdict([measured(s, dpo_offhand=0.9) for s in range(3)]).holds
    assert not EXPERIMENT.verdict([measured(s, rejection=0.2) for s in range(3)]).holds
    assert not EXPERIMENT.verdict([measured(s, dpo_offhand=0.4) for s in range(3)]).holds, "it learned to work"


def test_the_figure(tmp_path: Path) -> None:
    lab.draw(EXPERIMENT, [measured(s) for s in range(2)], tmp_path / "x.svg")
    assert "pass@k" in (tmp_path / "x.svg").read_text()


def test_the_recipe_plans() -> None:
    assert find("discovery") is EXPERIMENT
    names = [p.name for p in plan(*recipes.load("lab/discovery"), Path("nowhere"))]
    assert {s for stages in ROADS.values() for s in stages} == set(names)


def test_a_run_is_read(tmp_path: Path) -> None:
    figures = {"accuracy": 0.5, "greedy": {"accuracy": 0.6}, "length": 4.0, "worked": 0.1}
    for stages in ROADS.values():
        for stage in stages:
            (tmp_path / stage).mkdir()
            write_json(tmp_path / stage / "summary.json", {"easy": figures | {f"pass@{k}": 0.1 * k for k in KS}})
    write_json(tmp_path / "harvest" / "summary.json", {"drawn_tokens": 7})
    write_lines(tmp_path / "rejection" / "metrics.jsonl", [{"tokens": 20.0}, {"tokens": 30.0}])
    write_lines(tmp_path / "grpo" / "metrics.jsonl", [{"tokens": 9.0, "length/mean": 2.5, "rollouts": 4.0}, {}])
    found = measure(tmp_path)
    assert (found["rejection"]["drawn"], found["rejection"]["trained"]) == (7, 50)
    assert (drawn_tokens(tmp_path / "grpo"), trained_tokens(tmp_path / "grpo")) == (10, 9)
    assert found["base"]["pass@2"] == 0.2 and found["grpo"]["greedy"] == 0.6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Works in about half of its answers, so that there are answers of both kinds."""
    out = tmp_path_factory.mktemp("base")
    few = ["documents=3000", "worked=0.5", "lengths=[1, 1]", "worked_lengths=[1, 1]"]
    small_run.run(out, *(f"pretrain.data.web.{f}" for f in few), "eval=null", until="pretrain")
    return out / "pretrain" / "model"


def annotated(tmp_path: Path, model: Path, filters: str) -> Path:
    recipe = tmp_path / "own.yaml"
    stage = f"{{kind: annotate, judge: chain_gold, error: 0, num_prompts: 140, filters: {filters}}}"
    head = f"model: {{source: {model}}}\nthreads: 1\ntask: {{chain: {{steps: [1, 2], size: 140}}}}\n"
    recipe.write_text(head + f"stages:\n  pairs: {stage}\n", encoding="utf-8")
    small_run.run(tmp_path / "out", recipe=recipe)
    return tmp_path / "out" / "pairs"


def test_both_sides_of_a_pair_pass_the_filters(tmp_path: Path, model: Path) -> None:
    """And what was drawn for them is counted, whether it is in a pair or not."""
    stage = annotated(tmp_path, model, "[offhand]")
    told, rows = read_json(stage / "summary.json"), read_lines(stage / "data.jsonl")
    assert told["pairs"] == len(rows) > 0 and told["filtered"] > 0
    assert told["pairs"] + told["equal"] + told["filtered"] == 280
    assert not any(is_worked(r[side]) for r in rows for side in ("chosen", "rejected"))
    (tmp_path / "any").mkdir()
    every = annotated(tmp_path / "any", model, "[]")
    rest, free = read_json(every / "summary.json"), read_lines(every / "data.jsonl")
    assert rest["filtered"] == 0 and rest["drawn_tokens"] == told["drawn_tokens"] > 560
    assert any(is_worked(r[side]) for r in free for side in ("chosen", "rejected"))


def test_filters_that_there_are_not_and_that_leave_nothing(tmp_path: Path, model: Path) -> None:
    with pytest.raises(UserError, match="no filter is called 'of_hand'"):
        annotated(tmp_path, model, "[of_hand]")
    with pytest.raises(UserError, match=r"filters.*: there is nothing to prefer: .* did not pass the filters"):
        annotated(tmp_path, model, "[offhand, clean]")
