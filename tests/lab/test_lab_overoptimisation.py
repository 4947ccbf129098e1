"""The experiment `overoptimisation`: positive and negative verdicts from made-up figures, its figure and recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ladder.lab.overoptimisation import ANCHORS, EXPERIMENT, KINDS, WIDTH, measure
from ladder.lab.run import draw
from ladder.pipeline import recipe as recipes
from ladder.pipeline.plan import plan


def seed(number: int, falls: float, anchored_fall: float = 0.0) -> dict[str, Any]:
    """The figures of one seed: gold falls from 1.3, by `falls` without an anchor and by `anchored_fall` with one."""
    x = np.linspace(0, 1, 10)
    figures: dict[str, Any] = {}
    for kind in KINDS:
        for anchor in ANCHORS:
            fall = falls if anchor == "none" else anchored_fall
            gold = np.where(x < 0.3, 0.7 + 2 * x, 1.3 - fall * (x - 0.3) / 0.7) + 0.01 * number
            figures[f"{kind}_{anchor}"] = {"kl": (30 * x).tolist(), "proxy": x.tolist(), "gold": gold.tolist()}
    figures["best_of_n"] = [{"n": n, "kl": np.log(n), "gold": 1.0 + 0.01 * n, "reward": 0.1} for n in (1, 4, 16)]
    return figures


def test_it_holds_when_gold_falls_without_the_anchor_only() -> None:
    result = EXPERIMENT.verdict([seed(i, 0.6 + 0.02 * i) for i in range(3)])
    assert result.holds and result.effect.mean == pytest.approx(0.62, abs=0.05)
    assert "loses 0.59 of gold" in result.sentence and len(result.table) == 1 + 8 + 3


@pytest.mark.parametrize(("falls", "anchored_fall"), [(0.0, 0.0), (0.6, 0.6)])
def test_it_fails_when_gold_does_not_fall_or_falls_with_the_anchor_too(falls: float, anchored_fall: float) -> None:
    assert not EXPERIMENT.verdict([seed(i, falls, anchored_fall) for i in range(3)]).holds


def test_it_fails_when_the_proxy_falls_with_gold_in_one_seed() -> None:
    seeds = [seed(i, 0.6 + 0.02 * i) for i in range(3)]
    seeds[1]["grpo_none"]["proxy"] = [0.5] * 9 + [0.1]
    assert not EXPERIMENT.verdict(seeds).holds


def test_measure_reads_a_run(tmp_path: Path) -> None:
    for name in [f"{k}_{a}" for k in KINDS for a in ANCHORS]:
        (tmp_path / name).mkdir()
        rows = [
            {"step": i + 1, "reward/mean": i, "watched/gold": 2 * i, "kl_base": 0.5, "length/mean": 10}
            | ({} if name.endswith("none") else {"kl/response": 7.0})
            for i in range(2 * WIDTH + 3)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, summary in (("best_of_n", {"curve": []}), ("reward_model", {"held_out": {}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    figures = measure(tmp_path)
    assert figures["grpo_none"] == {"kl": [5.0, 5.0], "proxy": [3.5, 11.5], "gold": [7.0, 23.0]}
    assert figures["ppo_small"]["kl"] == [7.0, 7.0]


def test_the_figure(tmp_path: Path) -> None:
    draw(EXPERIMENT, [seed(i, 0.6) for i in range(2)], tmp_path / "x.svg")
    assert "square root of the KL" in (tmp_path / "x.svg").read_text()


def test_the_recipe_has_the_experiments_anchors(tmp_path: Path) -> None:
    recipe, document = recipes.load(EXPERIMENT.recipe, ["model.source=preset:chain"])
    plan(recipe, document, tmp_path)
    for kind in KINDS:
        for anchor, beta in ANCHORS.items():
            assert recipe.stages[f"{kind}_{anchor}"]["kl_coef"] == beta
