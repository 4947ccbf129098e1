"""Rewards of completion length, in sampled tokens (`rollout.length`).

- `Overlong`: DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13): 0 up to max - cache, then linear down to -1
  at max, -1 beyond.
- `CosineLength`: a cosine of the length, one for correct and one for wrong answers (Yeo et al., arXiv:2502.03373,
  eq. 1): CosFn(t, T, a, b) = b + (a - b)(1 + cos(pi t / T)) / 2 goes from a at t = 0 to b at t = T.
- `Length`: a linear or cosine ramp between two lengths, independent of correctness.
- `LengthRange`: 1 inside a range of lengths, 0 outside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from ladder.contract.rollouts import Outcome, Reward, Rollout, Score

STRICT = ConfigDict(extra="forbid")


def cosine(t: float, end: float, first: float, last: float) -> float:
    """Half a cosine from `first` at t = 0 to `last` at t = end."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * t / end))


@dataclass(frozen=True, config=STRICT)
class Overlong:
    """A punishment in [-1, 0]. max_tokens: length from which it is -1. cache: the tokens below max_tokens over which it
    goes from 0 to -1."""

    max_tokens: int
    cache: int
    name: str = "overlong"

    @model_validator(mode="after")
    def _check_cache(self) -> Overlong:
        if not 0 < self.cache <= self.max_tokens:
            raise ValueError(f"cache must be between 1 and max_tokens ({self.max_tokens}), got {self.cache}")
        return self

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        values = [self.value(r.length) for r in group]
        return [Score(v, {self.name: v}) for v in values]

    def value(self, length: int) -> float:
        """The reward of a completion of `length` tokens."""
        excess = length - (self.max_tokens - self.cache)
        return -min(max(excess / self.cache, 0.0), 1.0)


@dataclass(frozen=True, config=STRICT)
class Length:
    """A ramp from `at_min` at `min_tokens` to `at_max` at `max_tokens`, constant outside."""

    max_tokens: int
    min_tokens: int = 0
    at_min: float = 0.0
    at_max: float = 1.0
    shape: Literal["linear", "cosine"] = "linear"
    name: str = "length"

    @model_validator(mode="after")
    def _check_bounds(self) -> Length:
        if not 0 <= self.min_tokens < self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) must be at least 0, below max_tokens ({self.max_tokens})")
        return self

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        values = [self.value(r.length) for r in group]
        return [Score(v, {self.name: v}) for v in values]

    def value(self, length: int) -> float:
        """The reward of a completion of `length` tokens."""
        span = self.max_tokens - self.min_tokens
        position = min(max(length - self.min_tokens, 0), span)
        if self.shape == "cosine":
            return cosine(position, span, self.at_min, self.at_max)
        return self.at_min + (self.at_max - self.at_min) * position / span


@dataclass(frozen=True, config=STRICT)
class LengthRange:
    """1 if min_tokens <= length <= max_tokens, otherwise 0."""

    max_tokens: int
    min_tokens: int = 0
    name: str = "length_range"

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        values = [float(self.min_tokens <= r.length <= self.max_tokens) for r in group]
        return [Score(v, {self.name: v}) for v in values]


@dataclasses.dataclass(frozen=True)
class CosineLength:
    """Short correct answers earn more than long ones; long wrong answers lose less than short ones. Defaults from the
    paper.

    of: the reward that decides correctness: a score of at least `right_from` is correct. right_short, wrong_short:
    values at length 0. right_long, wrong_long: values at max_tokens. exceeds: value at max_tokens or more.
    """

    of: Reward
    max_tokens: int
    right_short: float = 2.0
    right_long: float = 1.0
    wrong_short: float = -10.0
    wrong_long: float = 0.0
    exceeds: float = -10.0
    right_from: float = 0.5
    name: str = "cosine"

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        return [
            self._score(o, r.length) if isinstance(o, Score) else o for o, r in zip(self.of(group), group, strict=True)
        ]

    def _score(self, correctness: Score, length: int) -> Score:
        if length >= self.max_tokens:
            value = self.exceeds
        elif correctness.value >= self.right_from:
            value = cosine(length, self.max_tokens, self.right_short, self.right_long)
        else:
            value = cosine(length, self.max_tokens, self.wrong_short, self.wrong_long)
        return Score(value, correctness.parts | {self.name: value})
