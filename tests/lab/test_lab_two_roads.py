"""The experiment `two_roads`: verdicts from made-up figures; the outside sets do not influence the chosen anchor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ladder.lab.run import draw
from ladder.lab.two_roads import ANCHORS, EXPERIMENT, ROADS, SETS, chosen, measure
from ladder.pipeline import recipe as recipes
from ladder.pipeline.plan import plan


def figures(inside: float, outside: float) -> dict[str, Any]:
    return {name: {"gold": inside if name == "inside" else outside, "right": 0.5, "length": 9.0} for name in SETS}


def seed(number: int, dpo: float, rl: float) -> dict[str, Any]:
    """The figures of one seed: all routes reach 1.4 inside at the middle anchor; outside DPO reaches `dpo`, the others
    `rl`."""
    stages = {"base": figures(0.7, 0.6)}
    for road in ROADS:
        for i, anchor in enumerate(ANCHORS):
            outside = (dpo if road == "dpo" else rl) + 0.01 * number
            # the loose anchor is best outside, which must not select it
            outside += 2.0 if anchor == "loose" else 0.0
            stages[f"{road}_{anchor}"] = figures(1.4 - 0.1 * abs(i - 1), outside)
    return stages


def test_it_holds_when_dpo_falls_behind_outside() -> None:
    result = EXPERIMENT.verdict([seed(i, 1.0, 1.2) for i in range(3)])
    assert result.holds and result.effect.mean == pytest.approx(0.2)
    assert "+20%" in result.sentence and len(result.table) == 1 + 1 + 3 * 4


def test_it_fails_when_dpo_is_level_or_ahead_outside() -> None:
    for dpo in (1.2, 1.3):
        assert not EXPERIMENT.verdict([seed(i, dpo, 1.2) for i in range(3)]).holds


def test_the_anchor_is_chosen_inside() -> None:
    assert chosen(seed(0, 1.0, 1.2), "dpo")["longer"]["gold"] == 1.0


def test_measure_reads_a_run_and_the_figure_is_drawn(tmp_path: Path) -> None:
    for name in ("base", *(f"{r}_{a}" for r in ROADS for a in ANCHORS)):
        (tmp_path / name).mkdir()
        evaluation = {"accuracy": 1.25, "score/right": 0.5, "length": 9.0}
        (tmp_path / name / "summary.json").write_text(json.dumps(dict.fromkeys(SETS, evaluation)))
    assert measure(tmp_path)["ppo_tight"]["shorter"] == {"gold": 1.25, "right": 0.5, "length": 9.0}
    draw(EXPERIMENT, [measure(tmp_path)] * 2, tmp_path / "x.svg")
    assert "8-12 steps" in (tmp_path / "x.svg").read_text()


def test_the_recipe_has_the_experiments_stages(tmp_path: Path) -> None:
    recipe, document = recipes.load(EXPERIMENT.recipe, ["model.source=preset:chain"])
    plan(recipe, document, tmp_path)
    assert {f"{r}_{a}" for r in ROADS for a in ANCHORS} < set(recipe.stages) and recipe.eval is not None
    assert set(recipe.eval.sets) == set(SETS)
