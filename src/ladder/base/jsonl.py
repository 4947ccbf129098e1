"""Append-only JSON Lines files, one object a line, that a resumed run truncates to its checkpoint's step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class JsonLines:
    """An append-only JSONL file of records with a `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *records: dict[str, Any]) -> None:
        """Appends records and closes the file, so that each call's records are on disk."""
        with self.path.open("a", encoding="utf-8") as f:
            for record in records:
                f.write(json.dumps(record, ensure_ascii=False) + "\n")

    def cut(self, step: int) -> None:
        """Drops the records after `step`, and an incomplete last line that a killed run left."""
        if not self.path.exists():
            return
        lines = []
        for line, record in _parse_records(self.path):
            if record["step"] > step:
                break
            lines.append(line + "\n")
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, self.path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete records of a JSONL file; an empty list when the file does not exist."""
    return [record for _, record in _parse_records(path)] if path.exists() else []


def _parse_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, record) up to the first incomplete line. Only LF ends a line: a text may contain U+2028."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            return
        yield line, record
