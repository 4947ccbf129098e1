"""Tasks in, groups of rollouts out, token for token: the sampled token ids are trained, never re-tokenised text.

Left out: several turns, where the tokens of an environment's messages have a mask of False.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ladder.base import rng
from ladder.contract.rollouts import Completion, Request, Rollout, Sampler, Sampling, Task

Encode = Callable[[Any], list[int]]
"""A task's prompt (text or messages) as token ids."""


@dataclass(slots=True)
class Collector:
    """Samples n completions of each task. Requests are keyed by (seed, purpose, step, index of the task)."""

    sampler: Sampler
    encode: Encode
    n: int
    sampling: Sampling
    seed: int
    purpose: str

    def __call__(self, tasks: Sequence[Task], *, step: int, version: int | None = None) -> list[list[Rollout]]:
        """One group per task, in order. A rollout has the version of its completion (`Completion.version`); `version`,
        the caller's view of the policy's, is not used."""
        requests = [
            Request(self.encode(t.prompt), self.n, self.sampling, rng.key(self.seed, self.purpose, step, i))
            for i, t in enumerate(tasks)
        ]
        drawn = self.sampler.generate(requests)
        return [
            [to_rollout(task, request.prompt, c, i) for c in group]
            for i, (task, request, group) in enumerate(zip(tasks, requests, drawn, strict=True))
        ]


def to_rollout(task: Task, prompt: Sequence[int], c: Completion, group: int) -> Rollout:
    """A completion with its prompt; the mask is True for the tokens that the policy drew."""
    return Rollout(
        task,
        [*prompt, *c.tokens],
        [False] * len(prompt) + [not forced for forced in c.forced],
        [0.0] * len(prompt) + c.logps,
        c.text,
        c.stop,
        group,
        c.version,
    )
