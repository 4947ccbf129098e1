"""Trackers receive the metrics of metrics.jsonl, live and in a replay, and their failure never ends a run."""

from __future__ import annotations

import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ladder.base.errors import UserError
from ladder.base.files import read_json
from ladder.base.jsonl import read_lines
from ladder.tracking import trackers
from ladder.tracking.log import RunLog
from small_run import run

FIGURES: list[dict[str, float]] = [{"loss": 0.5, "reward/mean": 0.25}, {"loss": float("nan"), "reward/mean": 0.75}]
EXPECTED = {("loss", 1): 0.5, ("reward/mean", 1): 0.25, ("reward/mean", 2): 0.75}
Logged = dict[tuple[str, int], float]


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers write to tmp_path only and use no network."""
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONFIG_DIR": str(tmp_path / "wandb"),
        "WANDB_CACHE_DIR": str(tmp_path / "wandb"),
        "WANDB_DATA_DIR": str(tmp_path / "wandb"),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def tensorboard(stage: Path) -> Logged:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    return {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}


def wandb(stage: Path) -> Logged:
    """Reads W&B's binary log: a 7-byte header, then records, each after a checksum (4), a length (2) and a type (1)."""
    from wandb.proto import wandb_internal_pb2 as proto

    logged: Logged = {}
    (path,) = (stage / "wandb").glob("offline-run-*/*.wandb")
    data, at = path.read_bytes(), 7
    while at < len(data):
        size, kind = struct.unpack_from("<HB", data, at + 4)
        if kind != 1 or at + 7 + size > len(data):  # still being written
            break
        record: Any = proto.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(data[at + 7 : at + 7 + size])
        at += 7 + size
        items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
        logged |= {(k, int(items["_step"])): float(v) for k, v in items.items() if not k.startswith("_")}
    return logged


def mlflow(stage: Path) -> Logged:
    query = "select key, step, value, status from metrics join runs using (run_uuid) where name = ?"
    with sqlite3.connect(stage.parent / "mlruns.db") as database:
        rows = [*database.execute(query, [stage.name])]
    assert {status for *_, status in rows} == {"FINISHED"}
    return {(key, step): value for key, step, value, _ in rows}


def settled(reader: Callable[[Path], Logged], stage: Path) -> Logged:
    """The metrics of a tracker after it wrote all of them: W&B's process runs on for a moment after close()."""
    for _ in range(300):
        logged = reader(stage)
        if len(logged) == len(EXPECTED):
            break
        time.sleep(0.2)
    return logged


READERS: dict[str, Callable[[Path], Logged]] = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.usefixtures("quiet")
def test_live_and_replayed_metrics_are_equal(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    if name == "mlflow":
        pytest.importorskip("sqlalchemy")
        pytest.importorskip("alembic")
    live, replayed = tmp_path / "live", tmp_path / "replayed"
    log = RunLog(live, [trackers.check([name])[0](live, "run", "live")])
    for step, figures in enumerate(FIGURES, 1):
        log.step(step, figures)
    log.close()
    assert settled(READERS[name], live) == pytest.approx(EXPECTED)

    replayed.mkdir()
    (replayed / "metrics.jsonl").write_bytes((live / "metrics.jsonl").read_bytes())
    assert trackers.replay(replayed, "run", "replayed", [name]) == 2
    assert settled(READERS[name], replayed) == READERS[name](live)


@pytest.mark.usefixtures("quiet")
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks the calls only: trackio's server takes seconds to start, and its database is trackio's concern."""
    trackio = pytest.importorskip("trackio")
    logged: Logged = {}
    calls: list[Any] = []
    monkeypatch.setattr(trackio, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(trackio, "log", lambda figures, step: logged.update({(k, step): v for k, v in figures.items()}))
    monkeypatch.setattr(trackio, "finish", lambda: calls.append("finish"))
    log = RunLog(tmp_path, [trackers.Trackio(tmp_path, "run", "rl")])
    for step, figures in enumerate(FIGURES, 1):
        log.step(step, figures)
    log.close()
    assert calls == [{"project": "run", "name": "rl"}, "finish"]
    assert logged == {(k.replace("/", "_"), step): v for (k, step), v in EXPECTED.items()}


# ---------------------------------------------------------------- failures


class Sink:
    """Raises at a given call. fails: "step N" or "close"."""

    name = "wobbly"

    def __init__(self, fails: str = "") -> None:
        self.fails, self.steps, self.closed = fails, [], 0

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.steps.append(step)
        if self.fails == f"step {step}":
            raise ConnectionError("no route\nto host")

    def close(self) -> None:
        self.closed += 1
        if self.fails == "close":
            raise RuntimeError("late")


def test_a_failing_sink_is_reported_once_and_disabled(tmp_path: Path) -> None:
    warnings: list[str] = []
    bad, good = Sink("step 2"), Sink()
    log = RunLog(tmp_path, [bad, good], warnings.append)
    for step in (1, 2, 3):
        log.step(step, {"loss": 1.0})
    log.close()
    assert warnings == ["tracker wobbly failed and is disabled from here on: ConnectionError: no route to host"]
    assert (bad.steps, good.steps) == ([1, 2], [1, 2, 3]) and (bad.closed, good.closed) == (0, 1)
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 3


def test_a_sink_that_fails_at_close(tmp_path: Path) -> None:
    warnings: list[str] = []
    good = Sink()
    RunLog(tmp_path, [Sink("close"), good], warnings.append).close()
    assert warnings == ["tracker wobbly failed and is disabled from here on: RuntimeError: late"] and good.closed == 1


def test_a_run_continues_without_its_failed_tracker(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sinks: list[Sink] = []

    def open_sink(*_: Any) -> Sink:
        sinks.append(Sink("step 2"))
        return sinks[-1]

    def refuse(*_: Any) -> Sink:
        raise PermissionError("no login")

    pytest.importorskip("tensorboard")
    monkeypatch.setitem(trackers.SINKS, "tensorboard", open_sink)
    output = run(copy, "rl.steps=3", "trackers=[tensorboard]").text
    assert output.count("wobbly failed and is disabled") == 1 and sinks[0].steps == [1, 2]
    assert read_json(copy / "rl" / "summary.json")["steps"] == 3

    monkeypatch.setitem(trackers.SINKS, "tensorboard", refuse)
    assert run(copy, "rl.steps=4", "trackers=[tensorboard]").text.count("disabled from here on: PermissionError") == 1
    assert read_json(copy / "rl" / "summary.json")["steps"] == 4


@pytest.mark.usefixtures("quiet")
def test_a_run_sends_its_metrics_to_its_tracker(copy: Path) -> None:
    pytest.importorskip("tensorboard")
    run(copy, "rl.steps=3", "trackers=[tensorboard]")
    logged = tensorboard(copy / "rl")
    rows = read_lines(copy / "rl" / "metrics.jsonl")
    expected = {(k, r["step"]): v for r in rows for k, v in r.items() if k not in ("step", "time") and v is not None}
    assert len(rows) == 3 and logged == pytest.approx(expected, rel=1e-6)
    assert not (copy / "sft" / "tensorboard").exists(), "a finished stage is not logged again"


def test_an_unknown_tracker() -> None:
    with pytest.raises(UserError, match=r"trackers: no tracker is called 'tensorbord', did you mean 'tensorboard'\?"):
        trackers.check(["tensorbord"])


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package 'wandb'.*pip install 'signal-ladder\[trackers\]'"):
        trackers.check(["wandb"])
    with pytest.raises(UserError, match="'mlflow'"):
        run(tmp_path / "out", "trackers=[mlflow]")
    assert not (tmp_path / "out").exists(), "the error comes before anything runs"


def test_mlflow_without_a_server_needs_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "alembic" else name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert trackers.check(["mlflow"]) == [trackers.MLflow]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="needs the package 'alembic'"):
        trackers.check(["mlflow"])
