"""All completions of some requests at once, for any sampler that submits and steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ladder.contract.rollouts import Completion, Finished, Request


class Steps(Protocol):
    """The part of `contract.rollouts.Sampler` that `generate` stands on. busy: whether requests are in flight."""

    @property
    def busy(self) -> bool: ...
    def submit(self, request: Request) -> int: ...
    def step(self) -> list[Finished]: ...
    def cancel(self, number: int) -> None: ...


def generate(sampler: Steps, requests: Sequence[Request]) -> list[list[Completion]]:
    """One list of completions per request, in order. A call that fails leaves none of its requests in flight.

    Raises ValueError where other requests are in flight, whose completions would be lost, and for samples to be kept,
    which nobody could continue.
    """
    if any(request.keep for request in requests):
        raise ValueError("generate tells no numbers to continue a sample by: submit the request instead")
    if sampler.busy:
        raise ValueError("generate would lose the completions of the requests in flight: submit these, too")
    numbers: list[int] = []
    done: dict[int, list[Completion]] = {}
    try:
        for request in requests:
            numbers.append(sampler.submit(request))
        while len(done) < len(numbers):
            done |= {finished.number: finished.completions for finished in sampler.step()}
    except BaseException:
        for number in numbers:
            sampler.cancel(number)
        raise
    return [done[number] for number in numbers]
