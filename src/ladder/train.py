"""The only training loop. What differs between techniques is the signal; what is trained is a list of learners.

    batch -> every learner's update -> the signal observes the new weights -> the step is reported

The caller decides what a step's end means (log, evaluate, checkpoint) and when to stop, through `on_step`.
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
    """One model under training and the loss it is trained by. The first learner is the policy."""

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
    """Runs steps start+1 .. steps and returns how many are finished.

    An empty batch (no answer carried a signal) trains nothing and counts as a step. A signal that runs dry ends
    the run. Learner figures are prefixed with the learner's name from the second learner on.
    """
    if not learners:
        raise ValueError("nothing to train: no learner")
    policy = learners[0].engine
    done, batches = start, signal.batches()
    while done < steps:
        begun = time.perf_counter()
        units = next(batches, None)
        if units is None:
            return done
        got = time.perf_counter()
        figures = dict(signal.metrics())
        if units:
            for i, learner in enumerate(learners):
                update = learner.engine.update(
                    units,
                    learner.loss,
                    epochs=learner.epochs,
                    minibatches=min(learner.minibatches, len(units)),  # a signal may leave but a few
                    key=rng.key(seed, "update", learner.name, done),
                )
                figures |= {f"{learner.name}/{k}": v for k, v in update.items()} if i else update
        done += 1
        signal.observe(policy.weights, done)
        figures["seconds/signal"] = got - begun
        figures["seconds/update"] = time.perf_counter() - got
        if on_step(done, figures):
            return done
    return done
