"""Rows that tasks are made of, read by `ladder.data.jsonl`: what is wrong in one is said with file, line and field.

A bad row stops the reading: a task source has few rows, and none that may be dropped unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ladder.base.errors import UserError
from ladder.data import jsonl
from ladder.data.rows import Bad


@dataclass(frozen=True, slots=True)
class Row:
    """One line. line counts from 1."""

    file: str
    line: int
    fields: dict[str, Any]

    def error(self, field: str, message: str, hint: str | None = None) -> UserError:
        return UserError(message, file=self.file, line=self.line, field=field, hint=hint)

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
    """All rows of a JSONL file. Raises the UserError of its first bad row; a file without rows is an error."""
    rows: list[Row] = []
    for row in jsonl.read(path):
        if isinstance(row, Bad):
            raise row.error
        rows.append(Row(path, row.origin.line, row.fields))
    if not rows:
        raise UserError("holds no rows", file=path, hint="a row is one JSON object on a line")
    return rows
