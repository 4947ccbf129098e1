"""Examples as a signal: the same samples over and over, reshuffled each epoch. Pretraining and SFT differ in data only.

The order of an epoch is a function of (seed, epoch), so the cursor is one number and resuming is exact, at an epoch's
boundary as anywhere else. A batch is a number of samples, or as many as fit a number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ladder import rng
from ladder.errors import UserError
from ladder.types import Sample, Unit, Weights


@dataclass(slots=True)
class Examples:
    """batch: samples a step; tokens: or tokens a step (one of the two). shuffle: False keeps the given order."""

    samples: Sequence[Sample]
    epochs: int = 1
    batch: int = 0
    tokens: int = 0
    seed: int = 0
    shuffle: bool = True
    step: int = 0
    _bounds: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    _orders: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samples:
            raise UserError("there is nothing to train on: the data holds no example", field="data")
        if (self.batch > 0) == (self.tokens > 0):
            raise UserError("give the batch in samples or in tokens", field="batch", mend="set one of batch, batch_tokens")

    @property
    def steps(self) -> int:
        """Of all epochs together."""
        return sum(len(self._cuts(e)) for e in range(self.epochs))

    def batches(self) -> Iterator[list[Unit]]:
        for epoch in range(self.epochs):
            cuts = self._cuts(epoch)
            first = sum(len(self._cuts(e)) for e in range(epoch))
            while first <= self.step < first + len(cuts):
                a, b = cuts[self.step - first]
                self.step += 1
                yield [self.samples[i] for i in self._order(epoch)[a:b]]

    def observe(self, weights: Callable[[], Weights], version: int) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            n = len(self.samples)
            self._orders = {
                epoch: rng.np_rng(self.seed, "examples", epoch).permutation(n) if self.shuffle else np.arange(n)
            }
        return self._orders[epoch]

    def _cuts(self, epoch: int) -> list[tuple[int, int]]:
        """Where each batch of an epoch begins and ends in its order."""
        if epoch not in self._bounds:
            n = len(self.samples)
            if self.batch:
                starts = list(range(0, n, self.batch))
            else:
                lengths = np.array([len(self.samples[i].tokens) for i in self._order(epoch)])
                reached = np.concatenate([[0], lengths.cumsum()[:-1]])
                starts = np.flatnonzero(np.diff(reached // self.tokens, prepend=-1)).tolist()
            self._bounds[epoch] = list(zip(starts, [*starts[1:], n], strict=True))
        return self._bounds[epoch]
