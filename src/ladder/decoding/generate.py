"""`generate` on top of `submit` and `step`, for every sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ladder.contract.rollouts import Completion, Finished, Request


class Steps(Protocol):
    """The part of `contract.rollouts.Sampler` that `generate` needs."""

    @property
    def busy(self) -> bool: ...
    def submit(self, request: Request) -> int: ...
    def step(self) -> list[Finished]: ...
    def cancel(self, number: int) -> None: ...


def generate(sampler: Steps, requests: Sequence[Request]) -> list[list[Completion]]:
    """One list of completions per request, in order. If the call fails, its requests are cancelled.

    Raises ValueError if other requests are in flight, whose completions would be lost, and for requests with keep=True,
    whose numbers the caller would not learn.
    """
    if any(request.keep for request in requests):
        raise ValueError("generate returns no request numbers, so kept samples could not be continued: use submit")
    if sampler.busy:
        raise ValueError("generate would lose the completions of the requests in flight: use submit for these, too")
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
