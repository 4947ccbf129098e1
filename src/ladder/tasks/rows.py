"""Rows of a JSONL file that know where they stand, so that what is wrong in one is said with file, line and field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladder.errors import UserError


@dataclass(frozen=True, slots=True)
class Row:
    """One line. line counts from 1."""

    file: str
    line: int
    fields: dict[str, Any]

    def error(self, field: str, message: str, mend: str | None = None) -> UserError:
        return UserError(message, file=self.file, line=self.line, field=field, mend=mend)

    def get(self, field: str) -> Any:
        """The field's value. Raises UserError when it is missing or null."""
        if self.fields.get(field) is None:
            there = ", ".join(k for k, v in self.fields.items() if v is not None)
            raise self.error(field, f"is missing (the row has: {there})")
        return self.fields[field]

    def text(self, field: str) -> str:
        """The field, a text that is not blank. Raises UserError."""
        value = self.get(field)
        if not isinstance(value, str):
            raise self.error(field, f"must be text, not {type(value).__name__}")
        if not value.strip():
            raise self.error(field, "is empty")
        return value


def read(path: str) -> list[Row]:
    """All rows of a JSONL file. Raises UserError naming file and line; an empty file is an error."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as err:
        raise UserError(f"cannot be read: {err.strerror}", file=path) from err
    rows: list[Row] = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except ValueError as err:
            raise UserError(f"not a line of JSON: {err}", file=path, line=i) from err
        if not isinstance(value, dict):
            raise UserError(f"must be an object, not {type(value).__name__}", file=path, line=i)
        rows.append(Row(path, i, value))
    if not rows:
        raise UserError("holds no rows", file=path)
    return rows
