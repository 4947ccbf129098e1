"""The rows of a task source's JSONL file, read by `ladder.data.jsonl`; an error names file, line and field.

A bad row stops the reading: a task source has few rows, and none may be dropped silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ladder.base.errors import UserError
from ladder.data import jsonl
from ladder.data.rows import Bad


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One JSON object of the file. line: its line number, from 1. fields: its values by column."""

    file: str
    line: int
    fields: dict[str, Any]

    def error(self, field: str, message: str, hint: str | None = None) -> UserError:
        """An error about one field of this row."""
        return UserError(message, file=self.file, line=self.line, field=field, hint=hint)

    def get(self, field: str) -> Any:
        """The field's value. Raises UserError when it is missing or null."""
        if self.fields.get(field) is None:
            present = ", ".join(k for k, v in self.fields.items() if v is not None)
            raise self.error(field, f"is missing (the row has: {present})")
        return self.fields[field]

    def text(self, field: str) -> str:
        """The field's value, a text that is not blank. Raises UserError for any other value."""
        value = self.get(field)
        if not isinstance(value, str):
            raise self.error(field, f"must be text, not {type(value).__name__}")
        if not value.strip():
            raise self.error(field, "is empty")
        return value


def read(path: str) -> list[TaskRow]:
    """All rows of a JSONL file. Raises UserError on the first bad row, and for a file without rows."""
    rows: list[TaskRow] = []
    for row in jsonl.read(path):
        if isinstance(row, Bad):
            raise row.error
        rows.append(TaskRow(path, row.origin.line, row.fields))
    if not rows:
        raise UserError("has no rows", file=path, hint="write one JSON object per line")
    return rows
