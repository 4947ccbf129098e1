"""The lab: intervals over seeds, and a small experiment from its runs to verdict and figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ladder.base.errors import UserError
from ladder.lab import run as lab
from ladder.lab.experiment import Experiment, Measured, Verdict
from ladder.lab.experiments import EXPERIMENTS, find
from ladder.lab.stats import difference, effect
from ladder.pipeline import recipe as recipes
from ladder.tracking.console import Console


def test_the_interval_worked_by_hand() -> None:
    """1, 2, 3: mean 2, standard deviation 1, t(2) = 4.303: half-width 4.303 / sqrt 3 = 2.4843."""
    result = effect([1.0, 2.0, 3.0])
    assert (result.mean, result.each) == (2.0, (1.0, 2.0, 3.0))
    assert result.low == pytest.approx(2 - 2.48434, abs=1e-4) and result.high == pytest.approx(2 + 2.48434, abs=1e-4)
    assert result.agrees and not result.positive
    assert not effect([-1.0, 2.0, 3.0]).agrees
    assert effect([1.0, 1.1, 0.9]).positive
    assert result.text(".1f") == "2.0 (-0.5 to 4.5)"


def test_differences_are_paired_by_seed() -> None:
    result = difference([1.0, 5.0, 9.0], [0.9, 4.9, 8.9])
    assert result.mean == pytest.approx(0.1) and result.low == pytest.approx(0.1)


def test_the_interval_covers() -> None:
    """Of 2,000 intervals of five standard-normal values about 95% contain the true mean 0."""
    x = np.random.default_rng(0).normal(size=(2000, 5))
    covered = [e.low <= 0 <= e.high for e in map(effect, x)]
    assert abs(np.mean(covered) - 0.95) < 0.015


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two seeds"):
        effect([1.0])
    with pytest.raises(UserError, match="--seeds: an interval needs at least two different seeds"):
        experiment = Experiment("x", "", dict, lambda _: Verdict(True, effect([1, 2]), ""), print)
        lab.perform(experiment, [0, 0], tmp_path, Console())


def test_an_unknown_experiment() -> None:
    with pytest.raises(UserError, match="no experiment is called 'no'"):
        find("no")


@pytest.mark.parametrize("name", [*EXPERIMENTS, "base"])
def test_every_experiment_has_its_recipe(name: str) -> None:
    recipe, _ = recipes.load(f"lab/{name}")
    assert recipe.name == name


def small(tmp_path: Path, name: str, stages: dict[str, Any]) -> Path:
    """Writes a recipe with the given stages; returns its path."""
    recipe = {"name": name, "threads": 1, "model": {"source": "preset:chain"}, "task": "chain", "reward": "chain"}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe | {"stages": stages}))
    return path


def test_from_runs_to_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = {"web": {"documents": 60}}
    pretrain = {"kind": "pretrain", "data": web, "batch": 300, "by": "tokens"}
    files = {
        "lab/base": small(tmp_path, "base", {"pretrain": pretrain}),
        "lab/tiny": small(tmp_path, "tiny", {"more": {"kind": "sft", "data": web, "steps": 2, "batch": 8}}),
    }
    monkeypatch.setattr(recipes, "find", files.__getitem__)

    def measure(run: Path) -> Measured:
        rows = [json.loads(line) for line in (run / "more" / "metrics.jsonl").read_text().splitlines()]
        return {"losses": [r["loss"] for r in rows], "from": yaml.safe_load((run / "recipe.yaml").read_text())["model"]}

    def verdict(measured: Sequence[Measured]) -> Verdict:
        fell = difference([m["losses"][0] for m in measured], [m["losses"][1] for m in measured])
        return Verdict(fell.positive, fell, "it fell", {"again": fell}, [["seed", "loss"], ["0", "1"]])

    def draw(measured: Sequence[Measured], figure: Any) -> None:
        axes = figure.subplots()
        for m in measured:
            axes.plot(m["losses"])

    tiny = Experiment("tiny", "losses fall", measure, verdict, draw)
    result = lab.perform(tiny, [0, 1], tmp_path / "lab", Console(quiet=True))
    record = json.loads((tmp_path / "lab" / "tiny" / "tiny.json").read_text())
    assert record["effect"]["mean"] == result.effect.mean and list(record["seeds"]) == ["0", "1"]
    assert record["seeds"]["0"]["losses"] != record["seeds"]["1"]["losses"], "every seed is a separate run"
    for seed in (0, 1):
        base = tmp_path / "lab" / "base" / f"seed-{seed}" / "pretrain" / "model"
        assert record["seeds"][str(seed)]["from"]["source"] == str(base) and base.exists()
    page = (tmp_path / "lab" / "tiny" / "tiny.md").read_text()
    assert "it fell" in page and "| seed | loss |\n|---|---|\n| 0 | 1 |" in page and "| again | " in page
    assert (tmp_path / "lab" / "tiny" / "tiny.svg").read_text().startswith("<?xml")
