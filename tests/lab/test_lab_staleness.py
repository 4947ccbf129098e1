"""The experiment `staleness`: positive and negative verdicts from made-up figures, its figure and its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ladder.base.files import write_lines
from ladder.lab import run as lab
from ladder.lab.experiments import find
from ladder.lab.staleness import EXPERIMENT, RUNS, fall, learning, measure
from ladder.pipeline import recipe as recipes
from ladder.pipeline.run import plan


def measured(seed: int, **ends: float) -> dict[str, Any]:
    """Figures as `measure` returns them: accuracy rises to 0.8, then ends at `ends[stage]` or a default."""
    return {
        name: {
            "steps": [8, 16, 24],
            "accuracy": [0.3 + 0.01 * seed, 0.8, ends.get(name, 0.9 if "none" not in name else 0.1 + 0.02 * seed)],
            "gradient": 1.0,
            "clipped": 0.1,
        }
        for name in RUNS
    }


def test_it_holds_only_when_both_corrections_end_higher() -> None:
    result = EXPERIMENT.verdict([measured(s) for s in range(3)])
    assert result.holds and result.effect.mean == pytest.approx(0.78)
    assert "at 90% with a clipped ratio" in result.sentence and "68 points below its best" in result.sentence
    assert len(result.table) == len(RUNS) + 1 == 16
    assert not EXPERIMENT.verdict([measured(s, lag16_none=0.9) for s in range(3)]).holds
    assert not EXPERIMENT.verdict([measured(s, lag16_capped=0.1) for s in range(3)]).holds


def test_learning_and_stability_worked_by_hand() -> None:
    figures = {"accuracy": [0.2, 0.8, 0.5]}
    assert (learning(figures), fall(figures)) == (pytest.approx(0.5), pytest.approx(0.3))


def test_the_figure(tmp_path: Path) -> None:
    lab.draw(EXPERIMENT, [measured(s) for s in range(2)], tmp_path / "x.svg")
    assert "16 updates old" in (tmp_path / "x.svg").read_text()


def test_the_recipe_plans_and_its_stages_differ_in_behaviour_policy_and_loss_only() -> None:
    assert find("staleness") is EXPERIMENT
    planned = {p.name: p.config for p in plan(*recipes.load("lab/staleness"), Path("nowhere"))}
    assert set(planned) == {*RUNS, "other"}
    plain = planned["on_policy"].model_dump(exclude={"lag", "rollouts", "loss"})
    assert all(planned[n].model_dump(exclude={"lag", "rollouts", "loss"}) == plain for n in RUNS)
    assert [planned[f"lag{n}_none"].model_dump()["lag"] for n in (1, 4, 16)] == [1, 4, 16]
    assert planned["start_none"].model_dump()["rollouts"] == "start"


def test_measure_reads_a_run(tmp_path: Path) -> None:
    for name in RUNS:
        (tmp_path / name).mkdir()
        evals = [{"step": s, "set": "easy", "accuracy": 0.1 * s} for s in (1, 2)]
        write_lines(tmp_path / name / "evals.jsonl", evals)
        rows = [{"loss": 1.0, "grad_norm": g, "ratio/clipped": 0.1 * g} for g in (1.0, 3.0)]
        write_lines(tmp_path / name / "metrics.jsonl", [*rows, {"length/mean": 3.0}])
    figures = measure(tmp_path)["lag4_clip"]
    assert figures == {"steps": [1, 2], "accuracy": [0.1, 0.2], "gradient": 3.0, "clipped": pytest.approx(0.2)}
