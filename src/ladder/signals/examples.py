"""The signal of examples: samples are loaded once at the start and distributed over steps, each once per epoch.

An epoch is a permutation (a function of seed and epoch) split into steps of equal size: by sequences into
ceil(n / batch) steps whose numbers of sequences differ by at most one, by tokens into floor(total / batch) steps of
about equal length (on average never shorter than `batch`). No step spans two epochs, and no epoch ends with a smaller
step. The number of steps of an epoch does not depend on the shuffle, so a learning-rate schedule knows it beforehand.

The state is a cursor (epoch, batch) and a digest of the samples: a run is never resumed on other data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ladder.base import rng
from ladder.base.errors import UserError
from ladder.contract.training import Pair, Sample, Unit, Weights
from ladder.data.samples import Encoding, load
from ladder.data.source import Data, Report


@dataclass
class Examples:
    """The signal (`contract.training.Signal`).

    units: samples or pairs; the same objects are yielded in every epoch. batch: size of a step, in sequences (a pair
    counts as one) or in tokens (`by`). epochs: None is endless. in_order: this share of the units, the first ones,
    keeps its order at the beginning of the first epoch (a curriculum); the rest is shuffled. order: a function from an
    epoch to a permutation, instead of the shuffle. report: on the rows that were dropped or truncated.
    """

    units: Sequence[Unit]
    batch: int
    by: Literal["sequences", "tokens"] = "sequences"
    epochs: int | None = 1
    seed: int = 0
    in_order: float = 0.0
    order: Callable[[int], Sequence[int]] | None = None
    report: Report | None = None
    epoch: int = 0
    at: int = 0  # the next batch of the epoch
    _metrics: dict[str, float] = field(default_factory=dict)
    _planned: tuple[int, list[np.ndarray]] | None = None

    def __post_init__(self) -> None:
        if not self.units:
            raise UserError("there are no examples to train on", field="data")
        if self.batch < 1 or (self.epochs is not None and self.epochs < 1):
            raise UserError(f"batch {self.batch}, epochs {self.epochs}: both must be at least 1", field="batch")
        if not 0 <= self.in_order <= 1:
            raise UserError("must be a share between 0 and 1", field="in_order")
        if self.order is not None and self.in_order:
            raise UserError("in_order and order are both given", field="in_order", hint="leave one of them out")
        longest = int(self._lengths.max())
        if self.by == "tokens" and longest > self.batch:
            origin = _meta(self.units[int(self._lengths.argmax())]).get("origin", "an example")
            raise UserError(
                f"{origin} is {longest:,} tokens long, more than the {self.batch:,} tokens of a step",
                field="batch",
                hint="raise batch, or truncate the rows with max_tokens",
            )
        untrained = next((u for u in self.units if not _trained_tokens(u)), None)
        if untrained is not None:
            origin = _meta(untrained).get("origin", "an example")
            raise UserError(f"{origin}: no token in it is trained", field="data")

    @classmethod
    def load(cls, data: Data, tokenizer: Any, encoding: Encoding | None = None, **options: Any) -> Examples:
        """Loads the samples from a source of rows; `options` are the fields above. Raises UserError."""
        samples, report = load(data, tokenizer, encoding)
        return cls(samples, report=report, **options)

    # ------------------------------------------------------------ the signal

    def batches(self) -> Iterator[list[Unit]]:
        while self.epochs is None or self.epoch < self.epochs:
            if self._planned is None or self._planned[0] != self.epoch:
                self._planned = (self.epoch, self.plan(self.epoch))
            epoch, plan = self._planned
            batch_units = [self.units[i] for i in plan[self.at]]
            self._metrics = self._figures(batch_units, epoch + (self.at + 1) / len(plan))
            # the cursor is advanced before the batch is yielded, so a state saved after it resumes with the next batch
            self.epoch, self.at = (epoch, self.at + 1) if self.at + 1 < len(plan) else (epoch + 1, 0)
            yield batch_units

    def observe(self, weights: Callable[[], Weights], version: int) -> None:
        """Examples do not depend on the policy."""

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "at": self.at, "digest": self.digest, "split": self._split}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises UserError if the state was saved with other examples, or with another split of them into steps."""
        if state["digest"] != self.digest or state["split"] != self._split:
            difference = "other examples" if state["digest"] != self.digest else "another batch size, order or seed"
            raise UserError(f"the checkpoint was made with {difference}", field="data", hint="start a new run")
        self.epoch, self.at = int(state["epoch"]), int(state["at"])

    # ------------------------------------------------------------ epochs

    @property
    def steps_per_epoch(self) -> int:
        if self.by == "tokens":
            return max(1, int(self._lengths.sum()) // self.batch)
        return -(-len(self.units) // self.batch)

    @property
    def steps(self) -> int | None:
        """Steps of all epochs; None if they are endless."""
        return None if self.epochs is None else self.epochs * self.steps_per_epoch

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The indices of the units of each step of an epoch."""
        order, k = self._order(epoch), self.steps_per_epoch
        if self.by == "sequences":
            return np.array_split(order, k)
        # a unit belongs to the step that its middle falls into; no unit is longer than a step, so no step is empty
        lengths = self._lengths[order]
        middle = 2 * lengths.cumsum() - lengths
        step = middle * k // (2 * int(lengths.sum()))
        return np.split(order, np.searchsorted(step, np.arange(1, k)))

    def _order(self, epoch: int) -> np.ndarray:
        """The order of the units in an epoch, as indices [units]."""
        n = len(self.units)
        if self.order is not None:
            order = np.asarray(self.order(epoch), np.int64)
            if not np.array_equal(np.sort(order), np.arange(n)):
                raise ValueError(f"order({epoch}) is not a permutation of {n} examples")
            return order
        fixed = round(self.in_order * n) if epoch == 0 else 0
        rest = fixed + rng.np_rng(self.seed, "examples", epoch).permutation(n - fixed)
        return np.concatenate([np.arange(fixed), rest])

    @cached_property
    def _lengths(self) -> np.ndarray:
        """The number of tokens of each unit, int64 [units]."""
        return np.array([sum(len(s.tokens) for s in _samples(u)) for u in self.units], np.int64)

    @cached_property
    def digest(self) -> str:
        return digest(self.units)

    @property
    def _split(self) -> list[Any]:
        """The settings that decide which units form a step."""
        return [self.batch, self.by, self.seed, self.in_order, self.order is not None]

    def _figures(self, units: list[Unit], epoch: float) -> dict[str, float]:
        """The figures of a step's units."""
        samples = [s for unit in units for s in _samples(unit)]
        lengths = [len(s.tokens) for s in samples]
        return {
            "epoch": epoch,
            "sequences": float(len(samples)),
            "length/mean": sum(lengths) / len(lengths),
            "length/max": float(max(lengths)),
            "trained": sum(_trained_tokens(unit) for unit in units) / sum(lengths),
        }


def digest(units: Sequence[Unit], *parts: str) -> str:
    """The hash of all tokens and masks, in order, and of the strings in `parts`."""
    hashed = hashlib.blake2b("".join(f"{p}\0" for p in parts).encode(), digest_size=16)
    for unit in units:
        for sample in _samples(unit):
            hashed.update(len(sample.tokens).to_bytes(8, "little"))
            hashed.update(sample.tokens.numpy().tobytes())
            hashed.update(sample.mask.numpy().tobytes())
    return hashed.hexdigest()


def _samples(unit: Unit) -> tuple[Sample, ...]:
    return (unit.chosen, unit.rejected) if isinstance(unit, Pair) else (unit,)


def _trained_tokens(unit: Unit) -> int:
    """The number of trained tokens; 0 for a pair if one of its sides has none."""
    counts = [int(s.mask.sum()) for s in _samples(unit)]
    return sum(counts) if all(counts) else 0


def _meta(unit: Unit) -> dict[str, Any]:
    return _samples(unit)[0].meta
