"""Answers of an older policy or of another model: who drew them, with what log-probabilities, and the same bytes after
an interruption."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import small_run
from ladder.base.errors import UserError
from ladder.base.jsonl import read_lines
from ladder.contract.training import Sample, Unit
from ladder.engine.engine import Engine
from ladder.pipeline.build import models
from ladder.pipeline.kinds import rl
from ladder.pipeline.recipe import ModelSpec, Recipe
from ladder.pipeline.stage import Interrupted
from ladder.rollout.replica import Replica
from ladder.signals.rewards import Rewards
from ladder.tracking.log import RunLog

WEB = {"kind": "pretrain", "data": {"web": {"documents": 2500}}, "batch": 1500, "by": "tokens", "optim": {"lr": 3e-3}}
STEPS = 5
RL = {"kind": "rl", "steps": STEPS, "prompts_per_step": 8, "group_size": 8, "drop_zero_variance": False,
      "measure_kl": False, "sampling": {"max_tokens": 12}, "optim": {"lr": 3e-3}}  # fmt: skip
TOP = {"threads": 1, "task": {"chain": {"steps": [1, 2], "size": 60}}, "reward": "chain"}


def recipe(tmp_path: Path, model: Path | str, stages: dict[str, Any]) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(TOP | {"model": {"source": str(model)}, "stages": stages}))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lagged")
    small_run.run(out / "out", recipe=recipe(out, "preset:chain", {"base": WEB}))
    return out / "out" / "base" / "model"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[Sample]]]:
    """What every step of a run is trained on."""
    whole, steps = Rewards._batch, []

    def batch(self: Rewards) -> list[Unit]:
        units = whole(self)
        steps.append(units)
        return units

    monkeypatch.setattr(Rewards, "_batch", batch)
    yield steps


def run(tmp_path: Path, model: Path, **changes: Any) -> Path:
    small_run.run(tmp_path / "out", recipe=recipe(tmp_path, model, {"rl": RL | changes}))
    return tmp_path / "out" / "rl"


def logps(source: Path, units: list[Sample]) -> list[torch.Tensor]:
    loaded, _ = small_run.load(recipe=source.parent.parent.parent / "own.yaml")
    return [c["logps"] for c in models.frozen(loaded, models.load(loaded, str(source)), 1.0).forward(units)]


def close(units: list[Sample], found: list[torch.Tensor]) -> bool:
    return all(torch.allclose(u.cols["old_logps"] * u.mask, c, atol=1e-5) for u, c in zip(units, found, strict=True))


@pytest.mark.parametrize(("lag", "versions"), [(0, [0, 1, 2, 3, 4]), (1, [0, 0, 1, 2, 3]), (3, [0, 0, 0, 0, 1])])
def test_who_drew_is_so_many_updates_old(
    tmp_path: Path,
    model: Path,
    seen: list[list[Sample]],
    lag: int,
    versions: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And `old_logps` are what that policy says of the answers, to rounding."""
    policies: list[Engine] = []
    update = Engine.update

    def remember(self: Engine, *args: Any, **kwargs: Any) -> dict[str, float]:
        policies.append(self.freeze())
        return update(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "update", remember)
    rows = read_lines(run(tmp_path, model, lag=lag) / "metrics.jsonl")
    assert [{u.meta["version"] for u in units} for units in seen] == [{v} for v in versions]
    for units, version in zip(seen, versions, strict=True):
        drew = [c["logps"] for c in policies[version].forward(units)]
        assert close(units, drew)
    moved = [c["logps"] for c in policies[-1].forward(seen[-1])]
    assert close(seen[-1], moved) == (lag == 0)
    apart = [r["first/ratio/approx_kl"] > 1e-5 for r in rows]
    assert apart == [version != step for step, version in enumerate(versions)]


def test_no_lag_is_the_very_policy(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lag: 0 has the bytes of a stage that says nothing of it, and no second copy of the model."""
    monkeypatch.delattr(Replica, "generate")
    plain = run(tmp_path, model)
    (tmp_path / "b").mkdir()
    named = run(tmp_path / "b", model, lag=0, rollouts="own")
    kept = "model/model.safetensors"
    assert (plain / kept).read_bytes() == (named / kept).read_bytes()


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_an_interrupted_run_has_the_same_bytes(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    whole = run(tmp_path, model, lag=2)
    step = RunLog.step

    def stopping(self: RunLog, number: int, figures: dict[str, float]) -> None:
        step(self, number, figures)
        if number == cut:
            signal.raise_signal(signal.SIGINT)

    (tmp_path / "b").mkdir()
    with monkeypatch.context() as m, pytest.raises(Interrupted):
        m.setattr(RunLog, "step", stopping)
        run(tmp_path / "b", model, lag=2)
    again = run(tmp_path / "b", model, lag=2)
    kept = "model/model.safetensors"
    assert (whole / kept).read_bytes() == (again / kept).read_bytes()


def test_the_first_model_may_draw_to_the_end(tmp_path: Path, model: Path, seen: list[list[Sample]]) -> None:
    stage = run(tmp_path, model, rollouts="start")
    assert {u.meta["version"] for units in seen for u in units} == {0}
    for units in seen:
        assert close(units, logps(model, units))
    assert not close(seen[-1], logps(stage / "model", seen[-1]))


@pytest.mark.parametrize("how", ["stage", "model"])
def test_another_model_draws(tmp_path: Path, model: Path, seen: list[list[Sample]], how: str) -> None:
    """Its first ratio is not 1, and that is no error."""
    sft = {"kind": "sft", "data": {"web": {"documents": 300, "worked": 1.0}}, "batch": 32, "optim": {"lr": 3e-3}}
    stages: dict[str, Any] = {"other": sft}
    small_run.run(tmp_path / "out", recipe=recipe(tmp_path, model, stages))
    other = tmp_path / "out" / "other" / "model"
    stages["rl"] = RL | {"rollouts": {how: "other" if how == "stage" else str(other)}}
    small_run.run(tmp_path / "out", recipe=recipe(tmp_path, model, stages))
    assert {u.meta["version"] for units in seen for u in units} == {-1}
    assert all(close(units, logps(other, units)) for units in seen)
    first = read_lines(tmp_path / "out" / "rl" / "metrics.jsonl")[0]
    assert first["first/ratio/approx_kl"] > 1e-2
    findings = [r["name"] for r in read_lines(tmp_path / "out" / "rl" / "findings.jsonl")]
    assert "mismatch" not in findings, "who asks for another's answers is not told that they are another's"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lag": 2, "rollouts": "start"}, "rl.lag: delays the policy's own rollouts"),
        ({"kl_coef": 0.1, "rollouts": "start"}, "rl.kl_coef: subtracts the KL of the sampled tokens"),
        ({"rollouts": {"stage": "nobody"}}, "'nobody' is not an earlier stage"),
        ({"rollouts": "strat"}, "input should be 'own' or 'start'"),
        ({"lag": -1}, "input should be greater than or equal to 0"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, model: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as err:
        run(tmp_path, model, **change)
    assert message in str(err.value)


def test_another_vocabulary_cannot_draw(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladder.pipeline.build.models.same_tokens", lambda *_: False)
    with pytest.raises(UserError, match=r"rl.rollouts: the model's tokenizer is not the policy's"):
        run(tmp_path, model, rollouts={"model": str(model)})


def test_a_model_that_draws_is_part_of_the_identity(tmp_path: Path, model: Path) -> None:
    stage = rl.RL.model_validate({"kind": "rl", "rollouts": {"model": str(model)}})
    assert model in stage.inputs(Recipe(model=ModelSpec(source="x"), task="chain", reward="chain", stages={"a": {}}))


def test_a_lag_is_not_negative() -> None:
    with pytest.raises(ValueError, match="a lag of -1"):
        Replica(None, -1)  # type: ignore[arg-type]
