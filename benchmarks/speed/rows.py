"""The inputs that both sides read: JSON lines of token ids, and our types made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ladder.contract.training import Pair, Sample
from ladder.packing.pack import prompt_length


def read(path: Path, n: int | None = None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:n]]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def samples(path: Path, n: int | None = None) -> list[Sample]:
    return [_sample(r["prompt_ids"], r["completion_ids"]) for r in read(path, n)]


def pairs(path: Path, n: int | None = None) -> list[Pair]:
    def side(row: dict[str, Any], name: str) -> Sample:
        return _sample(row["prompt_ids"], row[name])

    return [Pair(side(r, "chosen_ids"), side(r, "rejected_ids")) for r in read(path, n)]


def _sample(prompt: list[int], answer: list[int]) -> Sample:
    tokens = torch.tensor([*prompt, *answer])
    return Sample(tokens, torch.arange(len(tokens)) >= len(prompt))


def of_sample(s: Sample) -> dict[str, Any]:
    n = prompt_length(s)
    return {"prompt_ids": s.tokens[:n].tolist(), "completion_ids": s.tokens[n:].tolist()}


def of_pair(p: Pair) -> dict[str, Any]:
    n = prompt_length(p.chosen)
    return {
        "prompt_ids": p.chosen.tokens[:n].tolist(),
        "chosen_ids": p.chosen.tokens[n:].tolist(),
        "rejected_ids": p.rejected.tokens[n:].tolist(),
    }


def pair_tokens(row: dict[str, Any]) -> int:
    """Tokens of a pair when its prompt is read once: the least that there is to compute."""
    return sum(len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
