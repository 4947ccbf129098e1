"""Stopped at any instant, by a signal or by kill -9, a run goes on to the very bytes of one that was left alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import small_run
from ladder.base.files import read_json
from ladder.base.jsonl import read_lines
from ladder.pipeline import evaluate
from ladder.pipeline.run import interruptible
from ladder.pipeline.stage import Context, Interrupted
from ladder.tracking.log import RunLog
from small_run import Listening, plan, run

kill_test = small_run.kill_test()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int, int], None]]:
    """Sends a signal to the run while a step's metrics are written: (stage, step, signal)."""
    whole = RunLog.step
    wanted: list[tuple[str, int, int]] = []

    def step(self: RunLog, number: int, figures: dict[str, float]) -> None:
        whole(self, number, figures)
        for one in list(wanted):
            if one[:2] == (self.metrics.path.parent.name, number):
                wanted.remove(one)
                signal.raise_signal(one[2])

    monkeypatch.setattr(RunLog, "step", step)
    yield lambda stage, number, signum: wanted.append((stage, number, signum))
    assert not wanted, "the signal never came"


def same(out: Path, small: Path) -> bool:
    """Whether two runs wrote the same bytes."""
    return kill_test.differences(kill_test.fingerprint(out), kill_test.fingerprint(small)) == []


def test_a_signal_saves_and_the_run_resumes(
    small: Path, tmp_path: Path, at: Callable[[str, int, int], None]
) -> None:
    out = tmp_path / "r1"
    places = (("pretrain", 3), ("r1_zero", 1), ("sft", 4), ("rl", 1))
    for (stage, step), signum in zip(places, [signal.SIGINT, signal.SIGTERM] * 2, strict=True):
        before = signal.getsignal(signum)
        at(stage, step, signum)
        with pytest.raises(Interrupted):
            run(out)
        assert [p.name for p in (out / stage / "checkpoints").iterdir()] == [f"step-{step:06d}"]
        assert not (out / stage / "model").exists() and plan(out)[stage] == "resume"
        assert signal.getsignal(signum) is before
    said = run(out).text
    assert "goes on after step 1 of 2" in said and same(out, small)
    assert not list(out.glob("*/checkpoints"))


def test_the_seconds_of_interrupted_runs_are_counted(
    tmp_path: Path, at: Callable[[str, int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "seconds", property(lambda ctx: ctx.before + 100))  # every start takes 100 s
    for step in (2, 3):
        at("pretrain", step, signal.SIGINT)
        with pytest.raises(Interrupted):
            run(tmp_path, until="pretrain")
    run(tmp_path, until="pretrain")
    assert read_json(tmp_path / "pretrain" / "summary.json")["seconds"] == 300


def test_a_signal_during_an_evaluation(small: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copy / "rl")
    with monkeypatch.context() as m:
        m.setattr(evaluate, "measure", interrupting(evaluate.measure))
        with pytest.raises(Interrupted):
            run(copy)
    assert (copy / "rl" / "model").exists() and not (copy / "rl" / "summary.json").exists()
    assert plan(copy)["rl"] == "resume"
    weights = (copy / "rl" / "model" / "model.safetensors").stat().st_mtime_ns
    run(copy)
    assert same(copy, small)
    assert (copy / "rl" / "model" / "model.safetensors").stat().st_mtime_ns == weights, "it was not trained again"


def test_a_signal_during_rejection_sampling(copy: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ladder.pipeline.kinds import rejection_sampling, sampling

    for path in (copy / "harvest").iterdir():
        path.unlink()
    with monkeypatch.context() as m:
        m.setattr(sampling, "write_json", interrupting(sampling.write_json))
        with pytest.raises(Interrupted):
            run(copy)
    (part,) = (copy / "harvest" / "parts").iterdir()
    assert part.name == "00000.json"
    before = part.stat().st_ino
    monkeypatch.setattr(rejection_sampling.shutil, "rmtree", lambda *_, **__: None)
    run(copy)
    assert part.stat().st_ino == before and same(copy, small)


def interrupting(function: Callable[..., object]) -> Callable[..., object]:
    """The function, with Ctrl-C pressed while it runs."""

    def wrapped(*args: object, **options: object) -> object:
        done = function(*args, **options)
        signal.raise_signal(signal.SIGINT)
        return done

    return wrapped


def test_the_second_ctrl_c_stops_at_once() -> None:
    console = Listening()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible(console) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop and stop.signum == signal.SIGINT and "stopping after this step" in console.text
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_during_an_evaluation_in_training(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "r1"
    with monkeypatch.context() as m:
        m.setattr(evaluate, "measure", interrupting(evaluate.measure))
        with pytest.raises(Interrupted):
            run(out, "pretrain.eval_every=4", until="pretrain")
    run(out, "pretrain.eval_every=4", until="pretrain")
    steps = [e["step"] for e in read_lines(out / "pretrain" / "evals.jsonl")]
    last = read_json(small / "pretrain" / "summary.json")["steps"]
    assert steps == sorted([*range(4, last, 4), last] * 4)
    weights = "pretrain/model.safetensors"
    assert kill_test.fingerprint(out)[weights] == kill_test.fingerprint(small)[weights]


@pytest.mark.parametrize("damage", ["truncated", "manifest"])
def test_a_damaged_checkpoint_is_skipped_and_reported(
    small: Path, copy: Path, at: Callable[[str, int, int], None], damage: str
) -> None:
    out = copy
    shutil.rmtree(out / "sft")
    at("sft", 4, signal.SIGINT)
    with pytest.raises(Interrupted):
        run(out, "save_every=0")
    checkpoints = sorted((out / "sft" / "checkpoints").iterdir())
    assert [p.name for p in checkpoints] == ["step-000003", "step-000004"]
    if damage == "truncated":
        path = max(checkpoints[1].glob("*.safetensors"), key=lambda p: p.stat().st_size)
        os.truncate(path, path.stat().st_size // 2)
    else:
        (checkpoints[1] / "manifest.json").unlink()
    said = run(out).text
    assert "step-000004 is damaged" in said and "going back to the one before" in said
    assert "goes on after step 3 of 6" in said and same(out, small)


def test_kill_9(small: Path, tmp_path: Path) -> None:
    """A short version of benchmarks/kill_test.py: a run that is killed a few times writes the same bytes."""
    recipe, r = str(small_run.ROOT / "recipes" / "r1.yaml"), random.Random(0)
    kill_test.start(recipe, small_run.TINY, tmp_path / "warm").kill()  # the server imports everything once
    places: list[str] = []
    for trial in range(3):
        out = tmp_path / f"run{trial}"
        places += kill_test.trial(recipe, small_run.TINY, out, r, 2.5, 4 - len(places))
        assert same(out, small), places
        if len(places) >= 3:
            return
    assert places, "no run was ever killed"
