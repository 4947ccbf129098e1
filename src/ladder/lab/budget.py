"""What a stage cost in tokens: those it drew, and those read in training (with prompts, in every epoch)."""

from __future__ import annotations

from pathlib import Path

from ladder.base.files import read_json
from ladder.base.jsonl import read_lines


def drawn_tokens(stage: Path) -> int:
    """Of answers sampled to be judged; evaluations do not count."""
    told = read_json(stage / "summary.json").get("drawn_tokens")
    if told is not None:
        return int(told)
    steps = [r for r in read_lines(stage / "metrics.jsonl") if "rollouts" in r]
    return round(sum(r["length/mean"] * r["rollouts"] for r in steps))


def trained_tokens(stage: Path) -> int:
    """Read by the trained model, with a shared prompt counted once."""
    return round(sum(r.get("tokens", 0) for r in read_lines(stage / "metrics.jsonl")))
