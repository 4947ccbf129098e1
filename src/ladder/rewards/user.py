"""A user's reward function, named by import path, run in a child process: TRL's, verl's or our signature.

`"pkg.mod:fn"` is imported (the working directory is on the path), `"file.py:fn"` is loaded from the file. An exception
or a missed deadline is an InfraError with the reason, a wrong return value an Invalid. The function's output is
discarded; its last line is quoted when the process dies or hangs. The signatures: see `ladder.rewards.worker`.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ladder.base.source import locate
from ladder.contract.rollouts import Groups, Judged, Outcome, Rollout
from ladder.rewards.child import Child

SLOW_S = 0.05
"""Seconds that a call must take for further processes to be worth their start."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class User:
    """A reward computed by a user's function.

    function: "pkg.mod:fn" or "file.py:fn". deadline_s: seconds for one call (a group, or one completion under verl's
    signature). memory_mb: data-segment limit of the child in MiB (0: none). kwargs: keyword arguments passed to every
    call. concurrency: most processes that run the function at a time, each of which imports it; 1 for a function that
    keeps a state between calls.
    """

    function: str
    deadline_s: float = 30.0
    memory_mb: int = 4096
    kwargs: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 4
    name: str = "user"

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be 1 or more, not {self.concurrency}")

    def file(self) -> Path | None:
        """The function's source, found without importing it; None for a module without one. Raises UserError."""
        return locate(self.function)

    @cached_property
    def children(self) -> list[Child]:
        """Child processes; all but the first start when a slow function is called with several groups."""
        child = partial(Child, self.function, self.deadline_s, memory_mb=self.memory_mb, kwargs=self.kwargs)
        return [child() for _ in range(self.concurrency)]

    @property
    def child(self) -> Child:
        return self.children[0]

    def start(self) -> None:
        """Starts the child. Raises UserError if the function cannot be loaded or has none of the three signatures."""
        self.child.start()

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        return self.child.judge(group, self.name)

    def judge_groups(self, groups: Groups) -> Judged:
        """Judges the first group, and the others `concurrency` at a time if that took longer than `SLOW_S`."""
        if not groups:
            return []
        begin = time.monotonic()
        first = self(groups[0])
        if self.concurrency == 1 or len(groups) < 3 or time.monotonic() - begin < SLOW_S:
            return [first, *(self(group) for group in groups[1:])]
        idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
        for child in self.children:
            idle.put(child)

        def judge(group: list[Rollout]) -> list[Outcome]:
            child = idle.get()
            try:
                return child.judge(group, self.name)
            finally:
                idle.put(child)

        with ThreadPoolExecutor(self.concurrency) as pool:
            return [first, *pool.map(judge, groups[1:])]
