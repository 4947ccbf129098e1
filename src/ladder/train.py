"""The only training loop. Techniques differ in the signal; the models under training are a list of learners.

    batch -> every learner's update -> the signal observes the new weights -> `on_step` gets the step's figures

Logging, evaluation, checkpoints and early stopping are left to the caller, in `on_step`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ladder.base import rng
from ladder.contract.training import Loss, Signal
from ladder.engine.engine import Engine


@dataclass(slots=True)
class Learner:
    """One model under training and its loss. The first learner is the policy."""

    engine: Engine
    loss: Loss
    name: str = "policy"
    epochs: int = 1
    minibatches: int = 1


OnStep = Callable[[int, dict[str, float]], bool]
"""Called with the number of finished steps and the step's figures; returning True ends the run."""


def train(
    signal: Signal, learners: Sequence[Learner], *, steps: int, start: int = 0, seed: int = 0, on_step: OnStep
) -> int:
    """Runs steps start+1 .. steps and returns the number of finished steps.

    An empty batch (no answer with a training signal) trains nothing and counts as a step. The run ends early when the
    signal has no further batch. The figures of every learner but the first are prefixed with the learner's name.
    Raises ValueError without a learner.
    """
    if not learners:
        raise ValueError("nothing to train: no learner")
    policy = learners[0].engine
    done, batches = start, signal.batches()
    while done < steps:
        step_started = time.perf_counter()
        units = next(batches, None)
        if units is None:
            return done
        update_started = time.perf_counter()
        figures = dict(signal.metrics())
        if units:
            for i, learner in enumerate(learners):
                update_figures = learner.engine.update(
                    units,
                    learner.loss,
                    epochs=learner.epochs,
                    minibatches=min(learner.minibatches, len(units)),  # a batch may have fewer units than that
                    key=rng.key(seed, "update", learner.name, done),
                )
                figures |= {f"{learner.name}/{k}": v for k, v in update_figures.items()} if i else update_figures
        done += 1
        signal.observe(policy.weights, done)
        figures["seconds/signal"] = update_started - step_started
        figures["seconds/update"] = time.perf_counter() - update_started
        if on_step(done, figures):
            return done
    return done
