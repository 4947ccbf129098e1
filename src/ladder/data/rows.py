"""A row as it was read, or what is wrong with it. Readers never raise for a bad row: the caller decides what it costs.

What is refused in every row, whatever the file format: nesting beyond `DEPTH`, NUL characters and lone surrogates
(no tokenizer can encode them), and numbers that are not finite. Other columns than the ones used are checked as well:
half a bad row is a bad row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ladder.base.errors import UserError
from ladder.data.kinds import Origin

DEPTH = 64


@dataclass(frozen=True, slots=True)
class Row:
    """raw: the line as it stands in the file (empty where the file has no lines)."""

    origin: Origin
    fields: dict[str, Any]
    raw: bytes = b""

    def error(self, message: str, *, field: str | None = None, hint: str | None = None) -> UserError:
        return UserError(message, file=self.origin.file, line=self.origin.line, field=field, hint=hint)


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that could not be read."""

    origin: Origin
    error: UserError
    raw: bytes = b""


def flaw(fields: dict[str, Any]) -> tuple[str, str] | None:
    """(field, what is wrong) of the first value that no row may hold; None when there is none. Does not recurse."""
    stack: list[tuple[str, Any, int]] = [(k, v, 1) for k, v in reversed(fields.items())]
    for key in fields:
        if wrong := _text_flaw(key):
            return ascii(key), f"the name {wrong}"
    while stack:
        name, value, depth = stack.pop()
        wrong = None
        if isinstance(value, str):
            wrong = _text_flaw(value)
        elif isinstance(value, float) and not math.isfinite(value):
            wrong = "is not a finite number"
        elif isinstance(value, dict | list):
            if depth >= DEPTH:
                return name[:80], f"is nested more than {DEPTH} deep"
            inner = [(f"{name}[{i}]", v) for i, v in enumerate(value)]
            if isinstance(value, dict):
                inner = [(f"{name}.{k}", v) for k, v in value.items()]
                wrong = next((f"the name {w}" for k in value if (w := _text_flaw(k))), None)
            stack += [(n, v, depth + 1) for n, v in reversed(inner)]
        if wrong:
            return name, wrong
    return None


def _text_flaw(text: object) -> str | None:
    if not isinstance(text, str):
        return f"is {type(text).__name__}, not text"
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        return f"holds half of a surrogate pair (character {err.start + 1}: \\u{ord(text[err.start]):04x})"
    return None
