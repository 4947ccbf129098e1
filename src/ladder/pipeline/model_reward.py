"""A reward model as a reward: the proxy that reinforcement learning climbs.

Scores whole rollouts, token for token, with the scalar head at their end. It must have been trained with the tokenizer
of the policy, since it reads the policy's token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ladder.pipeline import parts
from ladder.pipeline.recipe import Recipe
from ladder.signals.preferences import at_end
from ladder.signals.rewards import Reference, to_sample
from ladder.types import Outcome, Rollout, Score


@dataclass(frozen=True, slots=True)
class ModelReward:
    """forward: the frozen scorer's columns. filler: the token id that stands at the place of the score."""

    forward: Reference
    filler: int

    @classmethod
    def load(cls, recipe: Recipe, directory: Path) -> ModelReward:
        loaded = parts.load(recipe, str(directory), scalar=True)
        return cls(parts.frozen(recipe, loaded, 1.0).forward, int(loaded.model.config.pad_token_id))  # pyright: ignore

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        """The score of every answer of a group."""
        columns = self.forward([at_end(to_sample(r), self.filler) for r in group])
        return [Score(float(c["values"][-1])) for c in columns]
