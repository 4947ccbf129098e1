"""Experiment trackers: they receive every step's metrics; `metrics.jsonl` stays the truth and can be replayed to them.

A sink is a class with `name`, `log(step, figures)` and `close()`; its package is imported only when a recipe names it.
W&B follows WANDB_MODE (set it to offline to keep everything on disk); MLflow follows MLFLOW_TRACKING_URI.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ladder.base.config import near
from ladder.base.errors import UserError, missing_extra
from ladder.base.jsonl import read_lines
from ladder.tracking.log import Sink, left_out

Maker = Callable[[Path, str, str], Sink]
"""Constructor of a sink: (directory of the stage, name of the run, name of the stage) -> sink."""


class TensorBoard:
    """Event files in `tensorboard/` under the stage's directory."""

    name = "tensorboard"

    def __init__(self, directory: Path, run: str, stage: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory / "tensorboard"))

    def log(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """One W&B run a stage; the stages of a run form one W&B group."""

    name = "wandb"

    def __init__(self, directory: Path, run: str, stage: str) -> None:
        import wandb

        self.run: Any = wandb.init(
            project="signal-ladder", group=run, name=f"{run}/{stage}", dir=str(directory), reinit="create_new"
        )

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.run.log(figures, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """One MLflow run a stage, stored in `mlruns.db` in the run's directory unless MLFLOW_TRACKING_URI is set."""

    name = "mlflow"

    def __init__(self, directory: Path, run: str, stage: str) -> None:
        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{directory.parent.resolve() / 'mlruns.db'}")
        mlflow.set_experiment(run)
        self.client: Any = mlflow.MlflowClient()
        experiment: Any = self.client.get_experiment_by_name(run)
        self.run_id: str = self.client.create_run(experiment.experiment_id, run_name=stage).info.run_id

    def log(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


class Trackio:
    """trackio's local database; metric names have `_` in place of `/`."""

    name = "trackio"

    def __init__(self, directory: Path, run: str, stage: str) -> None:
        import trackio

        self.trackio: Any = trackio
        trackio.init(project=run, name=stage)

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.trackio.log({k.replace("/", "_"): v for k, v in figures.items()}, step=step)

    def close(self) -> None:
        self.trackio.finish()


SINKS: dict[str, Maker] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def check(names: Sequence[str]) -> list[Maker]:
    """The constructors of the named sinks. Raises UserError on an unknown name or a package that is not installed."""
    for name in names:
        if name not in SINKS:
            raise UserError(f"no tracker is called {name!r}{near(name, list(SINKS))}", field="trackers")
        for package in _required_packages(name):
            if importlib.util.find_spec(package) is None:
                raise missing_extra(package, "trackers", f"the tracker {name}")
    return [SINKS[name] for name in names]


def _required_packages(name: str) -> tuple[str, ...]:
    """The packages that a sink imports. MLflow without a server writes SQLite, which needs two more."""
    local_database = name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ
    return (name, "sqlalchemy", "alembic") if local_database else (name,)


def open_all(makers: Sequence[Maker], directory: Path, run: str, stage: str, say: Callable[[str], None]) -> list[Sink]:
    """Opens sinks; a constructor that raises (no login, no server) is reported with `say` and skipped."""
    sinks = []
    for maker in makers:
        try:
            sinks.append(maker(directory, run, stage))
        except Exception as err:  # noqa: BLE001  a tracker can fail in any way, and none may end the run
            say(left_out(getattr(maker, "name", str(maker)), err))
    return sinks


def replay(directory: Path, run: str, stage: str, names: Sequence[str]) -> int:
    """Sends all records of a stage's metrics.jsonl to the named sinks; returns the number of steps."""
    records = read_lines(directory / "metrics.jsonl")
    for maker in check(names):
        sink = maker(directory, run, stage)
        for record in records:
            metrics = {k: v for k, v in record.items() if k not in ("step", "time")}
            figures = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
            sink.log(int(record["step"]), figures)
        sink.close()
    return len(records)


__all__ = ["Maker", "SINKS", "check", "open_all", "replay"]
