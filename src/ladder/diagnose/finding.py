"""A finding: what an alarm found, the curves and completions that show it, and what to do next."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Curve = list[tuple[int, float]]
"""(step, value)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One alarm that fired. name: of the alarm. step: at which it fired. says: the problem in a sentence, with numbers.
    next: what to do. figures: the curves the alarm was raised from, by name. texts: a completion from the start of the
    run and one from `step`."""

    name: str
    step: int
    says: str
    next: str
    figures: dict[str, Curve] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """The finding as JSON-able data, one line of findings.jsonl."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Finding:
        """The inverse of `record`, from JSON."""
        figures = {name: [(int(s), float(x)) for s, x in curve] for name, curve in record["figures"].items()}
        return cls(record["name"], record["step"], record["says"], record["next"], figures, tuple(record["texts"]))
