"""The lab: intervals over seeds, and an experiment from runs to verdict and figure."""

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
    """1, 2, 3: mean 2, standard deviation 1, t(2) = 4.303: half 4.303 / sqrt 3 = 2.4843."""
    found = effect([1.0, 2.0, 3.0])
    assert (found.mean, found.each) == (2.0, (1.0, 2.0, 3.0))
    assert found.low == pytest.approx(2 - 2.48434, abs=1e-4) and found.high == pytest.approx(2 + 2.48434, abs=1e-4)
    assert found.agrees and not found.positive
    assert not effect([-1.0, 2.0, 3.0]).agrees
    assert effect([1.0, 1.1, 0.9]).positive
    assert found.text(".1f") == "2.0 (-0.5 to 4.5)"


def test_differences_are_paired_by_seed() -> None:
    found = difference([1.0, 5.0, 9.0], [0.9, 4.9, 8.9])
    assert found.mean == pytest.approx(0.1) and found.low == pytest.approx(0.1)


def test_the_interval_covers() -> None:
    """Of 2,000 means of five normal numbers about 95% lie in their interval."""
    x = np.random.default_rng(0).normal(size=(2000, 5))
    held = [e.low <= 0 <= e.high for e in map(effect, x)]
    assert abs(np.mean(held) - 0.95) < 0.015


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two seeds"):
        effect([1.0])
    with pytest.raises(UserError, match="--seeds: one seed has no interval"):
        never = Experiment("x", "", dict, lambda _: Verdict(True, effect([1, 2]), ""), print)
        lab.perform(never, [0, 0], tmp_path, Console())


def test_a_name_there_is_not() -> None:
    with pytest.raises(UserError, match="no experiment is called 'no'"):
        find("no")


@pytest.mark.parametrize("name", [*EXPERIMENTS, "base"])
def test_every_experiment_has_its_recipe(name: str) -> None:
    recipe, _ = recipes.load(f"lab/{name}")
    assert recipe.name == name


def small(tmp_path: Path, name: str, stages: dict[str, Any]) -> Path:
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
    found = lab.perform(tiny, [0, 1], tmp_path / "lab", Console(quiet=True))
    made = json.loads((tmp_path / "lab" / "tiny" / "tiny.json").read_text())
    assert made["effect"]["mean"] == found.effect.mean and list(made["seeds"]) == ["0", "1"]
    assert made["seeds"]["0"]["losses"] != made["seeds"]["1"]["losses"], "the seeds are runs of their own"
    for seed in (0, 1):
        base = tmp_path / "lab" / "base" / f"seed-{seed}" / "pretrain" / "model"
        assert made["seeds"][str(seed)]["from"]["source"] == str(base) and base.exists()
    told = (tmp_path / "lab" / "tiny" / "tiny.md").read_text()
    assert "it fell" in told and "| seed | loss |\n|---|---|\n| 0 | 1 |" in told and "| again | " in told
    assert (tmp_path / "lab" / "tiny" / "tiny.svg").read_text().startswith("<?xml")
