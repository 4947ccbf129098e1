"""Rewards of length, in tokens the policy drew (`rollout.length`).

- `Overlong`: DAPO's soft punishment (arXiv:2503.14476, eq. 13): 0 up to max - cache, then a straight line to -1 at
  max, -1 beyond.
- `CosineLength`: right and wrong answers each on a cosine of the length (Yeo et al., arXiv:2502.03373, eq. 1):
  CosFn(t, T, a, b) = b + (a - b)(1 + cos(pi t / T)) / 2 runs from a at t = 0 to b at t = T.
- `Length`: a straight or cosine ramp between two lengths, whatever the answer. `LengthRange`: 1 inside, 0 outside.
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
    """From `first` at t = 0 to `last` at t = end, along half a cosine."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * t / end))


@dataclass(frozen=True, config=STRICT)
class Overlong:
    """In [-1, 0]. max_tokens: where the punishment is full; cache: the tokens before it over which it grows."""

    max_tokens: int
    cache: int
    name: str = "overlong"

    @model_validator(mode="after")
    def _possible(self) -> Overlong:
        if not 0 < self.cache <= self.max_tokens:
            raise ValueError(f"cache must be between 1 and max_tokens ({self.max_tokens}), got {self.cache}")
        return self

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        values = [self.value(r.length) for r in group]
        return [Score(v, {self.name: v}) for v in values]

    def value(self, length: int) -> float:
        over = length - (self.max_tokens - self.cache)
        return -min(max(over / self.cache, 0.0), 1.0)


@dataclass(frozen=True, config=STRICT)
class Length:
    """From `at_min` at `min_tokens` to `at_max` at `max_tokens`, constant outside."""

    max_tokens: int
    min_tokens: int = 0
    at_min: float = 0.0
    at_max: float = 1.0
    shape: Literal["linear", "cosine"] = "linear"
    name: str = "length"

    @model_validator(mode="after")
    def _possible(self) -> Length:
        if not 0 <= self.min_tokens < self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) must lie below max_tokens ({self.max_tokens})")
        return self

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        values = [self.value(r.length) for r in group]
        return [Score(v, {self.name: v}) for v in values]

    def value(self, length: int) -> float:
        span = self.max_tokens - self.min_tokens
        at = min(max(length - self.min_tokens, 0), span)
        if self.shape == "cosine":
            return cosine(at, span, self.at_min, self.at_max)
        return self.at_min + (self.at_max - self.at_min) * at / span


@dataclass(frozen=True, config=STRICT)
class LengthRange:
    """1 where min_tokens <= length <= max_tokens, 0 elsewhere."""

    max_tokens: int
    min_tokens: int = 0
    name: str = "length_range"

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        values = [float(self.min_tokens <= r.length <= self.max_tokens) for r in group]
        return [Score(v, {self.name: v}) for v in values]


@dataclasses.dataclass(frozen=True)
class CosineLength:
    """Right answers earn more when short, wrong ones lose less when long (they tried); defaults from the paper.

    of: the reward that says what is right (a score of at least `right_from`). A text of max_tokens or more: `exceeds`.
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
            self._one(o, r.length) if isinstance(o, Score) else o for o, r in zip(self.of(group), group, strict=True)
        ]

    def _one(self, judged: Score, length: int) -> Score:
        if length >= self.max_tokens:
            value = self.exceeds
        elif judged.value >= self.right_from:
            value = cosine(length, self.max_tokens, self.right_short, self.right_long)
        else:
            value = cosine(length, self.max_tokens, self.wrong_short, self.wrong_long)
        return Score(value, judged.parts | {self.name: value})
