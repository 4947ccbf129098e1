"""A user's reward function, named by import path, run in a child process: TRL's, verl's or our signature.

`"pkg.mod:fn"` is imported (the working directory is on the path), `"file.py:fn"` is loaded from the file. An exception
or a missed deadline is an InfraError with the reason, a wrong return value an Invalid. The function's output is
discarded; its last line is quoted when the process dies or hangs. The signatures: see `ladder.rewards.worker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from functools import cached_property
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ladder.contract.rollouts import Outcome, Rollout
from ladder.rewards.child import Child


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class User:
    """A reward computed by a user's function.

    function: "pkg.mod:fn" or "file.py:fn". deadline_s: seconds for one call (a group, or one completion under verl's
    signature). memory_mb: data-segment limit of the child in MiB (0: none). kwargs: keyword arguments passed to every
    call.
    """

    function: str
    deadline_s: float = 30.0
    memory_mb: int = 4096
    kwargs: dict[str, Any] = field(default_factory=dict)
    name: str = "user"

    @cached_property
    def child(self) -> Child:
        return Child(self.function, self.deadline_s, memory_mb=self.memory_mb, kwargs=self.kwargs)

    def start(self) -> None:
        """Starts the child. Raises UserError if the function cannot be loaded or has none of the three signatures."""
        self.child.start()

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        return self.child.judge(group, self.name)
