"""JSON Lines files that only grow, one object a line, and can be cut back to a step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Lines:
    """A JSONL file that only grows, and can be cut back to a step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *records: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as f:
            for record in records:
                f.write(json.dumps(record, ensure_ascii=False) + "\n")

    def cut(self, step: int) -> None:
        """Drops records after `step`, and a line that was being written when the run died."""
        if not self.path.exists():
            return
        kept = []
        for line, record in _records(self.path):
            if record["step"] > step:
                break
            kept.append(line + "\n")
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, self.path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole records of a JSONL file; none when there is no file."""
    return [record for _, record in _records(path)] if path.exists() else []


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, record) up to the first line that is not whole. Only LF ends a line: a text may hold U+2028."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            return
        yield line, record
