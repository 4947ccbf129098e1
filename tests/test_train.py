"""The training loop: batch, every learner's update, the signal observes, `on_step`; and what ends the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import families as fam
from ladder.base import rng
from ladder.contract.training import Sample, Unit, Weights
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import CrossEntropy
from ladder.train import Learner, train

LOSS = CrossEntropy()


def sample(i: int) -> Sample:
    mask = torch.tensor([False, True, True, True])
    return Sample(torch.arange(4) + 5 + i, mask)


class Scripted:
    """A signal with the given batches; it records its calls in `events`."""

    def __init__(self, events: list[Any], batches: list[list[Unit]]) -> None:
        self.events, self.scripted_batches = events, batches
        self.versions: list[Callable[[], Weights]] = []

    def batches(self) -> Iterator[list[Unit]]:
        for i, batch in enumerate(self.scripted_batches):
            self.events.append(f"batch {i}")
            yield batch

    def observe(self, weights: Callable[[], Weights], version: int) -> None:
        self.events.append(f"observe {version}")
        self.versions.append(weights)

    def metrics(self) -> dict[str, float]:
        self.events.append("metrics")
        return {"reward": 0.5}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


class RecordingEngine:
    """A stand-in for an engine; it records its updates in `events`."""

    def __init__(self, events: list[Any], name: str) -> None:
        self.events, self.name = events, name

    def update(self, units: list[Unit], loss: Any, **options: Any) -> dict[str, float]:
        assert loss is LOSS
        self.events.append((self.name, len(units), options))
        return {"loss": float(len(units)), "lr": 0.1}

    def weights(self) -> Weights:
        return iter([(self.name, torch.zeros(1))])


def learner(events: list[Any], name: str = "policy", **options: Any) -> Learner:
    return Learner(RecordingEngine(events, name), LOSS, name, **options)  # pyright: ignore[reportArgumentType]


def run(
    batches: list[list[Unit]], names: tuple[str, ...] = ("policy",), **options: Any
) -> tuple[list[Any], int, Scripted]:
    """A run of recording learners: the events, the number of finished steps, and the signal."""
    events: list[Any] = []
    signal = Scripted(events, batches)

    def on_step(step: int, figures: dict[str, float]) -> bool:
        events.append((f"step {step}", figures))
        return step == options.get("stop_at")

    learners = [learner(events, name) for name in names]
    keys = {k: v for k, v in options.items() if k != "stop_at"}
    return events, train(signal, learners, on_step=on_step, **keys), signal


def test_the_order_of_a_step() -> None:
    events, done, signal = run([[sample(0)], [sample(1), sample(2)]], ("policy", "critic"), steps=2)
    assert done == 2
    shown = [e if isinstance(e, str) else e[0] for e in events]
    assert shown == [
        *("batch 0", "metrics", "policy", "critic", "observe 1", "step 1"),
        *("batch 1", "metrics", "policy", "critic", "observe 2", "step 2"),
    ]
    assert [name for name, _ in signal.versions[0]()] == ["policy"]


def test_figures_and_prefixes() -> None:
    events, _, _ = run([[sample(0), sample(1)]], ("policy", "critic"), steps=1)
    figures = events[-1][1]
    assert {k: v for k, v in figures.items() if "seconds" not in k} == {
        "reward": 0.5,
        "loss": 2,
        "lr": 0.1,
        "critic/loss": 2,
        "critic/lr": 0.1,
    }
    assert figures["seconds/signal"] >= 0 and figures["seconds/update"] >= 0


def test_options_and_keys_reach_the_update() -> None:
    events: list[Any] = []
    signal = Scripted(events, [[sample(0), sample(1)]] * 2)
    learners = [learner(events, epochs=3, minibatches=2), learner(events, "critic")]
    train(signal, learners, steps=2, seed=7, on_step=lambda *_: False)
    options = [e[2] for e in events if isinstance(e, tuple)]
    assert options[0] == {"epochs": 3, "minibatches": 2, "key": rng.key(7, "update", "policy", 0)}
    assert options[1] == {"epochs": 1, "minibatches": 1, "key": rng.key(7, "update", "critic", 0)}
    assert len({o["key"] for o in options}) == 4


def test_an_empty_batch_trains_nothing_and_counts() -> None:
    events, done, _ = run([[], [sample(0)]], steps=2)
    assert done == 2
    assert [e[0] for e in events if isinstance(e, tuple)] == ["step 1", "policy", "step 2"]
    first = events[3][1]
    assert "loss" not in first and first["reward"] == 0.5
    assert "observe 1" in events and "observe 2" in events


def test_a_batch_with_fewer_units_than_minibatches() -> None:
    """Near the end of training most groups have zero variance and few units are left; that must not end the run."""
    events: list[Any] = []
    train(Scripted(events, [[sample(0)]]), [learner(events, minibatches=4)], steps=1, on_step=lambda *_: False)
    assert [e[2]["minibatches"] for e in events if isinstance(e, tuple)] == [1]


def test_the_run_ends_when_the_signal_has_no_more_batches() -> None:
    events, done, _ = run([[sample(0)]] * 2, steps=5)
    assert done == 2 and events[-1][0] == "step 2"
    assert run([], steps=5)[1] == 0


def test_on_step_can_stop() -> None:
    events, done, _ = run([[sample(0)]] * 5, steps=5, stop_at=2)
    assert done == 2 and events[-1][0] == "step 2" and "batch 2" not in events


def test_a_resumed_run_continues_the_step_count() -> None:
    events, done, _ = run([[sample(0)]] * 9, steps=5, start=3, seed=1)
    assert done == 5
    assert [e for e in events if isinstance(e, str) and e.startswith("observe")] == ["observe 4", "observe 5"]
    keys = [e[2]["key"] for e in events if isinstance(e, tuple) and e[0] == "policy"]
    assert keys == [rng.key(1, "update", "policy", n) for n in (3, 4)]
    events, done, _ = run([[sample(0)]], steps=3, start=3)
    assert done == 3 and events == []


def test_no_learner_raises() -> None:
    with pytest.raises(ValueError, match="no learner"):
        train(Scripted([], []), [], steps=1, on_step=lambda *_: False)


def test_a_real_engine_learns_and_a_resumed_run_gives_the_same_weights() -> None:
    """Repeated samples are learned; an interrupted and resumed run ends with the same losses and weights."""

    def engine() -> Engine:
        return Engine(fam.build("llama"), Optim(lr=1e-2), total_steps=6)

    def go(e: Engine, start: int, steps: int) -> list[float]:
        losses: list[float] = []

        def on_step(step: int, figures: dict[str, float]) -> bool:
            losses.append(figures["loss"])
            return False

        batches: list[list[Unit]] = [[sample(i) for i in range(4)]] * (steps - start)
        learners = [Learner(e, LOSS, epochs=2, minibatches=2)]
        assert train(Scripted([], batches), learners, steps=steps, start=start, on_step=on_step) == steps
        return losses

    uninterrupted, interrupted = engine(), engine()
    losses = go(uninterrupted, 0, 6)
    assert losses[-1] < losses[0] / 2
    assert go(interrupted, 0, 2) + go(interrupted, 2, 6) == losses
    for (name, a), (_, b) in zip(uninterrupted.weights(), interrupted.weights(), strict=True):
        assert torch.equal(a, b), name
