"""The experiment `what_sft_changes`: verdicts both ways, a weight change worked by hand, and a tiny complete run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import small_run
from ladder.lab import run as lab
from ladder.lab import what_sft_changes as experiment
from ladder.lab.experiments import find
from ladder.lab.what_sft_changes import ADAPTERS, EXPERIMENT, KINDS, RATES, measure, relative_change, slower
from ladder.pipeline import recipe as recipes
from ladder.pipeline.run import plan

LEARNED = {"full": 0.036, "attention": 0.047, "mlp": 0.041, "linear": 0.042}
COUNTS = {"full": 153_000, "attention": 10_752, "mlp": 10_440, "linear": 10_872}


def measured(seed: int, counts: dict[str, int] = COUNTS, **learned: float) -> dict[str, Any]:
    """Figures as `measure` returns them, slightly different for each seed. learned: losses in place of LEARNED's."""

    def figures_of(kind: str) -> dict[str, Any]:
        adapter = {"logits": 1e-5, "moved": 2.0, "time": {"merged": 1.0, "apart": 1.3}} if kind in ADAPTERS else {}
        figures = {
            "learned": (LEARNED | learned)[kind] + 0.0001 * seed * len(kind),
            "forgot": 0.1,
            "accuracy": 0.9,
            "parameters": counts[kind],
            "change": {"attention": [0.1, 0.2, 0.3], "mlp": [0.2, 0.1, 0.1]},
        }
        return figures | adapter

    return {kind: figures_of(kind) for kind in KINDS} | {"base": {"learned": 0.2, "forgot": 0.5}}


def test_it_holds_only_when_attention_learns_less() -> None:
    result = EXPERIMENT.verdict([measured(s) for s in range(3)])
    assert result.holds and result.effect.mean == pytest.approx(0.0066)
    assert result.more["change under full SFT, attention - MLPs"].mean == pytest.approx(0.2 - 0.4 / 3)
    assert result.table[1][0] == "all weights" and result.table[2][8:] == ["1.00", "1.30"]
    assert not EXPERIMENT.verdict([measured(s, mlp=0.047) for s in range(3)]).holds


def test_adapters_of_unequal_size_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not of equal size"):
        EXPERIMENT.verdict([measured(s, COUNTS | {"mlp": 9_000}) for s in range(2)])


def test_the_figure(tmp_path: Path) -> None:
    lab.draw(EXPERIMENT, [measured(s) for s in range(2)], tmp_path / "x.svg")
    assert "relative change" in (tmp_path / "x.svg").read_text()


def test_a_change_worked_by_hand() -> None:
    """Layer 0's attention: two matrices of norm 3 and 4, changed by 0.3 and 0.4: 0.5 / 5. Layer norms do not count."""
    before = {
        "model.layers.0.self_attn.q_proj.weight": torch.tensor([[3.0, 0.0]]),
        "model.layers.0.self_attn.o_proj.weight": torch.tensor([[0.0, 4.0]]),
        "model.layers.0.mlp.up_proj.weight": torch.tensor([[2.0]]),
        "model.layers.1.self_attn.q_proj.weight": torch.tensor([[1.0]]),
        "model.layers.1.mlp.up_proj.weight": torch.tensor([[1.0]]),
        "model.layers.0.input_layernorm.weight": torch.tensor([9.0]),
    }
    moved = {name: p * 1.1 if "0.self" in name else p for name, p in before.items()}
    moved["model.layers.1.mlp.up_proj.weight"] = torch.tensor([[0.5]])
    changes = relative_change(before, moved)
    assert changes["attention"] == pytest.approx([0.1, 0.0]) and changes["mlp"] == pytest.approx([0.0, 0.5])


def test_calls_are_timed_in_turn_and_relative_to_the_first() -> None:
    calls: list[str] = []
    times = slower({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert times["a"] == 1.0 and set(times) == {"a", "b"} and calls == ["a", "b", "a", "b"]


def test_the_recipe_plans() -> None:
    assert find("what_sft_changes") is EXPERIMENT
    planned = {p.name: p.config.model_dump() for p in plan(*recipes.load("lab/what_sft_changes"), Path("nowhere"))}
    assert list(planned) == [f"{kind}_{rate}" for kind in KINDS for rate in RATES]
    for kind in KINDS:
        assert len({planned[f"{kind}_{rate}"]["optim"]["lr"] for rate in RATES}) == len(RATES)
        assert len({str(planned[f"{kind}_{rate}"]["lora"]) for rate in RATES}) == 1
    assert len({str(p["data"]) for p in planned.values()}) == 1


def test_measure_reads_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged and unmerged adapters give equal logits, different from the base's; parameter counts are as documented."""
    monkeypatch.setattr(experiment, "RATES", ("mid", "high"))
    monkeypatch.setattr(experiment, "DOCUMENTS", 50)
    monkeypatch.setattr(experiment, "ROUNDS", 2)
    small_run.run(tmp_path / "base", "eval=null", until="pretrain")
    recipe = yaml.safe_load((small_run.ROOT / "recipes" / "lab" / "what_sft_changes.yaml").read_text())
    recipe["stages"] = {n: s for n, s in recipe["stages"].items() if not n.endswith("_low")}
    for stage in recipe["stages"].values():
        stage["data"] = {"web": stage["data"]["web"] | {"documents": 64}}
    recipe["eval"]["sets"]["easy"]["n"], recipe["model"]["source"] = 4, str(tmp_path / "base" / "pretrain" / "model")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    small_run.run(tmp_path / "run", "engine.workers=1", "sampler.workers=1", recipe=tmp_path / "small.yaml")
    figures = measure(tmp_path / "run")
    for kind in ADAPTERS:
        assert figures[kind]["parameters"] == COUNTS[kind] and figures[kind]["stage"].startswith(f"{kind}_")
        assert figures[kind]["logits"] < 1e-4 < figures[kind]["moved"]
        assert figures[kind]["learned"] == min(figures["all"][f"{kind}_{rate}"]["learned"] for rate in ("mid", "high"))
        assert (min(figures[kind]["change"]["attention"]) > 0) == (kind != "mlp")
        assert (min(figures[kind]["change"]["mlp"]) > 0) == (kind != "attention")
    assert 0 < figures["full"]["learned"] < figures["base"]["learned"]
