"""Rows as they were read (`Row`), or the error that makes a row unreadable (`Bad`). Readers never raise on a bad row;
the caller decides whether to stop, skip or quarantine it.

Rejected in every row, whatever the file format: nesting beyond `DEPTH`, NUL characters and lone surrogates (no
tokenizer can encode them), and numbers that are not finite. All columns are checked, including those that are not used:
a row that is bad in one column is bad.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ladder.base.errors import UserError
from ladder.data.kinds import Origin

DEPTH = 64
"""Maximum nesting of a row."""


@dataclass(frozen=True, slots=True)
class Row:
    """A parsed row. raw: its line in the file, unchanged (empty for formats without lines)."""

    origin: Origin
    fields: dict[str, Any]
    raw: bytes = b""

    def error(self, message: str, *, field: str | None = None, hint: str | None = None) -> UserError:
        """An error about this row, naming file and line."""
        return UserError(message, file=self.origin.file, line=self.origin.line, field=field, hint=hint)


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that could not be read. error: the reason. raw: its line in the file, unchanged."""

    origin: Origin
    error: UserError
    raw: bytes = b""


def flaw(fields: dict[str, Any]) -> tuple[str, str] | None:
    """(field, problem) of the first value that no row may hold; None if there is none. Iterative, so it handles nesting
    of any depth."""
    stack: list[tuple[str, Any, int]] = [(k, v, 1) for k, v in reversed(fields.items())]
    for key in fields:
        if problem := _text_flaw(key):
            return ascii(key), f"the name {problem}"
    while stack:
        name, value, depth = stack.pop()
        problem = None
        if isinstance(value, str):
            problem = _text_flaw(value)
        elif isinstance(value, float) and not math.isfinite(value):
            problem = "is not a finite number"
        elif isinstance(value, dict | list):
            if depth >= DEPTH:
                return name[:80], f"is nested more than {DEPTH} deep"
            children = [(f"{name}[{i}]", v) for i, v in enumerate(value)]
            if isinstance(value, dict):
                children = [(f"{name}.{k}", v) for k, v in value.items()]
                problem = next((f"the name {p}" for k in value if (p := _text_flaw(k))), None)
            stack += [(n, v, depth + 1) for n, v in reversed(children)]
        if problem:
            return name, problem
    return None


def _text_flaw(text: object) -> str | None:
    """What makes a text impossible to encode; None for a good one."""
    if not isinstance(text, str):
        return f"is {type(text).__name__}, not text"
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        return f"holds a lone surrogate (character {err.start + 1}: \\u{ord(text[err.start]):04x})"
    return None
