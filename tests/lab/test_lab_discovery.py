"""The experiment `discovery`: positive and negative verdicts, its figure, its costs, and its filtered pairs."""

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
    """Figures as `measure` returns them, slightly different for each seed. right: accuracies in place of RIGHT's."""
    accuracies = RIGHT | right
    return {
        road: {
            "accuracy": accuracies[road] + 0.01 * seed,
            "greedy": accuracies[road],
            "length": 5.0 + 20 * accuracies[road],
            "worked": max(0.0, accuracies[road] - 0.05) + 0.01 * seed * (road == "base"),
            **{f"pass@{k}": 1 - (1 - accuracies[road]) ** k for k in KS},
            "drawn": 300_000,
            "trained": 200_000,
        }
        for road in ROADS
    }


def test_it_holds_only_when_both_selecting_methods_win() -> None:
    result = EXPERIMENT.verdict([measured(s) for s in range(3)])
    assert result.holds and result.effect.mean == pytest.approx(0.7)
    assert "GRPO at 91% right" in result.sentence and result.table[5][0] == "GRPO"
    assert not EXPERIMENT.verdict([measured(s, dpo_offhand=0.9) for s in range(3)]).holds
    assert not EXPERIMENT.verdict([measured(s, rejection=0.2) for s in range(3)]).holds
    assert not EXPERIMENT.verdict([measured(s, dpo_offhand=0.4) for s in range(3)]).holds, "DPO learned to work"


def test_the_figure(tmp_path: Path) -> None:
    lab.draw(EXPERIMENT, [measured(s) for s in range(2)], tmp_path / "x.svg")
    assert "pass@k" in (tmp_path / "x.svg").read_text()


def test_the_recipe_plans() -> None:
    assert find("discovery") is EXPERIMENT
    names = [p.name for p in plan(*recipes.load("lab/discovery"), Path("nowhere"))]
    assert {s for stages in ROADS.values() for s in stages} == set(names)


def test_measure_reads_a_run(tmp_path: Path) -> None:
    figures = {"accuracy": 0.5, "greedy": {"accuracy": 0.6}, "length": 4.0, "worked": 0.1}
    for stages in ROADS.values():
        for stage in stages:
            (tmp_path / stage).mkdir()
            write_json(tmp_path / stage / "summary.json", {"easy": figures | {f"pass@{k}": 0.1 * k for k in KS}})
    write_json(tmp_path / "harvest" / "summary.json", {"drawn_tokens": 7})
    write_lines(tmp_path / "rejection" / "metrics.jsonl", [{"tokens": 20.0}, {"tokens": 30.0}])
    write_lines(tmp_path / "grpo" / "metrics.jsonl", [{"tokens": 9.0, "length/mean": 2.5, "rollouts": 4.0}, {}])
    result = measure(tmp_path)
    assert (result["rejection"]["drawn"], result["rejection"]["trained"]) == (7, 50)
    assert (drawn_tokens(tmp_path / "grpo"), trained_tokens(tmp_path / "grpo")) == (10, 9)
    assert result["base"]["pass@2"] == 0.2 and result["grpo"]["greedy"] == 0.6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that works in about half of its answers, so that samples contain answers with and without working."""
    out = tmp_path_factory.mktemp("base")
    options = ["documents=3000", "worked=0.5", "lengths=[1, 1]", "worked_lengths=[1, 1]"]
    small_run.run(out, *(f"pretrain.data.web.{option}" for option in options), "eval=null", until="pretrain")
    return out / "pretrain" / "model"


def annotated(tmp_path: Path, model: Path, filters: str) -> Path:
    """Runs a stage of kind `annotate` with the given filters; returns its directory."""
    recipe = tmp_path / "annotate.yaml"
    stage = f"{{kind: annotate, judge: chain_gold, error: 0, num_prompts: 140, filters: {filters}}}"
    head = f"model: {{source: {model}}}\nthreads: 1\ntask: {{chain: {{steps: [1, 2], size: 140}}}}\n"
    recipe.write_text(head + f"stages:\n  pairs: {stage}\n", encoding="utf-8")
    small_run.run(tmp_path / "out", recipe=recipe)
    return tmp_path / "out" / "pairs"


def test_both_sides_of_a_pair_pass_the_filters(tmp_path: Path, model: Path) -> None:
    """`drawn_tokens` counts all sampled answers, also those of dropped pairs."""
    filtered_stage = annotated(tmp_path, model, "[offhand]")
    summary, rows = read_json(filtered_stage / "summary.json"), read_lines(filtered_stage / "data.jsonl")
    assert summary["pairs"] == len(rows) > 0 and summary["filtered"] > 0
    assert summary["pairs"] + summary["equal"] + summary["filtered"] == 280
    assert not any(is_worked(r[side]) for r in rows for side in ("chosen", "rejected"))
    (tmp_path / "any").mkdir()
    any_stage = annotated(tmp_path / "any", model, "[]")
    any_summary, any_rows = read_json(any_stage / "summary.json"), read_lines(any_stage / "data.jsonl")
    assert any_summary["filtered"] == 0 and any_summary["drawn_tokens"] == summary["drawn_tokens"] > 560
    assert any(is_worked(r[side]) for r in any_rows for side in ("chosen", "rejected"))


def test_unknown_filters_and_filters_that_drop_every_pair(tmp_path: Path, model: Path) -> None:
    with pytest.raises(UserError, match="no filter is called 'of_hand'"):
        annotated(tmp_path, model, "[of_hand]")
    with pytest.raises(UserError, match=r"filters.*: no pairs were made: .* did not pass the filters"):
        annotated(tmp_path, model, "[offhand, clean]")
