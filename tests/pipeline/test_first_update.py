"""The checks at the first update: a wrong sampler is found wherever the first update is, and again after a resume."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ladder.base.errors import UserError
from ladder.base.jsonl import read_lines
from ladder.contract.rollouts import Completion, Outcome, Request, Rollout, Score
from ladder.decoding.sampler import NativeSampler
from ladder.pipeline.build import samplers
from ladder.pipeline.kinds.sampling import Sampled
from ladder.pipeline.stage import Interrupted
from ladder.tracking.log import RunLog
from small_run import run

WEB = {"kind": "pretrain", "data": {"web": {"documents": 60}}, "batch": 300, "by": "tokens"}
RL_STAGE = {"kind": "rl", "from": "pretrain", "steps": 1, "prompts_per_step": 64, "group_size": 4}
RL_STAGE |= {"sampling": {"max_tokens": 8}, "drop_zero_variance": False}


def write(tmp_path: Path, rl: dict[str, Any]) -> Path:
    recipe = {"name": "one", "threads": 1, "model": {"source": "preset:chain"}, "task": "chain", "reward": "chain"}
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(recipe | {"stages": {"pretrain": WEB, "rl": RL_STAGE | rl}}, sort_keys=False))
    return path


def error(tmp_path: Path, rl: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        run(tmp_path / "out", recipe=write(tmp_path, rl))
    return str(caught.value)


class Wrong(NativeSampler):
    """A sampler that samples at a lower temperature than the requested one."""

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        return super().generate([replace(r, sampling=replace(r.sampling, temperature=0.7)) for r in requests])


@pytest.fixture
def wrong_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "NativeSampler", Wrong)


def test_a_wrong_sampler_is_found_at_the_first_update_and_not_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong_sampler: None
) -> None:
    """The first batch is empty: every group has one reward."""
    groups: list[int] = []

    def silent_at_first(group: Sequence[Rollout]) -> list[Outcome]:
        groups.append(1)
        return [Score(1.0 if len(groups) <= 64 else r.tokens[-1] % 3) for r in group]

    monkeypatch.setattr(Sampled, "reward_of", lambda *_: silent_at_first)
    said = error(tmp_path, {"steps": 3, "drop_zero_variance": True})
    assert "at the first update" in said and "draws from another distribution" in said
    assert [row["step"] for row in read_lines(tmp_path / "out" / "rl" / "metrics.jsonl")] == [1]


def test_a_wrong_sampler_is_found_if_the_loss_has_no_ratio(tmp_path: Path, wrong_sampler: None) -> None:
    assert "draws from another distribution" in error(tmp_path, {"loss": "PolicyGradient"})


def test_a_wrong_sampler_is_found_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"steps": 3})
    step = RunLog.step

    def stopping(self: RunLog, number: int, figures: dict[str, float]) -> None:
        step(self, number, figures)
        if "rl" in str(self.metrics.path) and number == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as m, pytest.raises(Interrupted):
        m.setattr(RunLog, "step", stopping)
        run(tmp_path / "out", recipe=path)
    monkeypatch.setattr(samplers, "NativeSampler", Wrong)
    with pytest.raises(UserError, match="at the first update the ratio"):
        run(tmp_path / "out", recipe=path)
