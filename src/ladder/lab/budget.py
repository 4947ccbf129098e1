"""The cost of a stage in tokens: sampled tokens, and trained tokens (prompts included, counted in every epoch)."""

from __future__ import annotations

from pathlib import Path

from ladder.base.files import read_json
from ladder.base.jsonl import read_lines


def drawn_tokens(stage: Path) -> int:
    """The number of tokens sampled for training or annotation; evaluations do not count."""
    recorded = read_json(stage / "summary.json").get("drawn_tokens")
    if recorded is not None:
        return int(recorded)
    steps = [r for r in read_lines(stage / "metrics.jsonl") if "rollouts" in r]
    return round(sum(r["length/mean"] * r["rollouts"] for r in steps))


def trained_tokens(stage: Path) -> int:
    """The number of tokens that the trained model processed; a shared prompt counts once."""
    return round(sum(r.get("tokens", 0) for r in read_lines(stage / "metrics.jsonl")))
