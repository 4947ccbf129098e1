"""A finding: what was seen, the figures and texts that show it, and what to do next."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Curve = list[tuple[int, float]]
"""(step, value)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """name: of the alarm. step: when it fired. says: what was seen, with numbers. next: what to do. figures: the curves
    it was read from, by name. texts: an answer from the start and one from now."""

    name: str
    step: int
    says: str
    next: str
    figures: dict[str, Curve] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Finding:
        """The inverse of `record`, from JSON."""
        figures = {name: [(int(s), float(x)) for s, x in curve] for name, curve in record["figures"].items()}
        return cls(record["name"], record["step"], record["says"], record["next"], figures, tuple(record["texts"]))
