"""What a workload is: one amount of work, the sides that do it, and what the comparison has to show.

A side is a process. It is given a directory of inputs, a file for its result and options as JSON, and reports

    {"amount": {unit: n}, "seconds": s, ...}        n units of work in s seconds, the first step left out

with whatever else it knows: "losses" of the first steps, "parts" (seconds by phase), "flops" (ours alone: the least
arithmetic of the work, the same for everybody), "versions".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["ours", "tuned", "default", "other"]
Precision = Literal["fp32", "bf16"]

TUNED_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""glibc's allocator keeps what it has and asks for large pages: without it TRL spends a fifth of its time on faults."""


@dataclass(frozen=True)
class Side:
    """Who does the work and how. where: the environment it runs in. role: what its figure is compared as; "other" is
    shown and held against nothing. only: workload steps at most (a slow setting need not do all of them)."""

    name: str
    role: Role
    where: Literal["ours", "peers", "vllm"]
    program: str  # our module, or the peer's script
    options: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    precision: Precision = "fp32"
    rounds: int | None = None

    def told(self, **more: Any) -> Side:
        return replace(self, options=self.options | more)


@dataclass(frozen=True)
class Workload:
    """unit: of the rate, a key of "amount". inverse: shown as seconds a unit. at_least: our rate over that of the
    fastest side of a role, by role. share: of the processor's limit that ours has to reach. memory: whether the
    issue bounds the peak. losses: the side whose first losses ours must equal. judge: our program that turns a side's
    report into its figure, outside every clock."""

    name: str
    title: str
    unit: str
    sides: Sequence[Side]
    inverse: bool = False
    at_least: dict[Role, float] = field(default_factory=dict)
    share: float | None = None
    memory: bool = False
    losses: str | None = None
    tolerance: float = 1e-4
    judge: str | None = None


PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def own(program: str, *, precisions: Sequence[Precision] = PRECISIONS, **options: Any) -> list[Side]:
    """Our side, once in each precision."""
    return [Side("ours", "ours", "ours", program, options | {"precision": p}, {}, p) for p in precisions]


def trl(name: str, role: Role, program: str, *, bf16: bool = False, tune: bool = True, **options: Any) -> Side:
    """A side in the peers' environment. tune: with the allocator that suits it."""
    return Side(
        name,
        role,
        "peers",
        program,
        options | {"bf16": bf16},
        TUNED_MALLOC if tune else {},
        "bf16" if bf16 else "fp32",
    )


def trl_sides(script: str, **options: Any) -> list[Side]:
    """TRL tuned and at its defaults, in either precision."""
    return [
        trl("TRL tuned", "tuned", script, checkpointing=False, **options),
        trl("TRL default in fp32", "default", script, tune=False, checkpointing=True, **options),
        trl("TRL tuned", "other", script, bf16=True, checkpointing=False, **options),
        trl("TRL default", "other", script, bf16=True, tune=False, checkpointing=True, **options),
    ]
