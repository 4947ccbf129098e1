"""Kept samples: finished samples that the next turn can continue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ladder.base.errors import UserError
from ladder.contract.rollouts import Completion, Request, Sampling

if TYPE_CHECKING:
    from ladder.decoding.key_values import KeyValues


@dataclass(frozen=True, slots=True)
class KeptSample:
    """One sample of a finished request.

    sequence: prompt and completion. drawn: tokens that the sampler drew or forced in all turns so far. cache: keys and
    values of the sequence's first tokens; None if they have to be computed anew. key, sample: of its random stream
    (`draw.stream`).
    """

    sequence: list[int]
    drawn: int
    sampling: Sampling
    key: int
    sample: int
    priority: int
    cache: KeyValues | None = None

    @classmethod
    def of(cls, request: Request, sample: int, completion: Completion) -> KeptSample:
        """A sample of a first turn, without keys and values."""
        tokens = completion.tokens
        sequence = [*request.prompt, *tokens]
        return cls(sequence, len(tokens), request.sampling, request.key, sample, request.priority)

    def after(self, completion: Completion, written: Sequence[int], sampling: Sampling) -> KeptSample:
        """The sample after another turn: an environment wrote tokens, then the completion was drawn."""
        sequence = [*self.sequence, *written, *completion.tokens]
        drawn = self.drawn + len(completion.tokens)
        return replace(self, sequence=sequence, drawn=drawn, sampling=sampling, cache=None)


class KeptSamples:
    """The kept samples of a sampler, by the number of their request and their index in it."""

    def __init__(self) -> None:
        self.samples: dict[int, dict[int, KeptSample]] = {}

    def put(self, number: int, place: int, kept: KeptSample) -> None:
        self.samples.setdefault(number, {})[place] = kept

    def find(self, number: int, place: int, tokens: Sequence[int]) -> KeptSample:
        """The sample that is to be continued by `tokens`. Raises UserError for one that is not kept."""
        if not tokens:
            raise UserError("a turn appends at least one token", hint="cancel the request if there is no further turn")
        found = self.samples.get(number, {}).get(place)
        if found is None:
            raise UserError(
                f"sample {place} of request {number} is not kept",
                hint="submit it with keep=True, wait until it has finished, and continue it once",
            )
        return found

    def remove(self, number: int, place: int) -> None:
        """Frees one sample."""
        del self.samples[number][place]
        if not self.samples[number]:
            del self.samples[number]

    def drop(self, number: int) -> None:
        """Frees a request's samples, if there are any."""
        self.samples.pop(number, None)

    def forget_caches(self) -> None:
        """Discards all keys and values: the weights have changed."""
        for samples in self.samples.values():
            for place, kept in samples.items():
                samples[place] = replace(kept, cache=None)
