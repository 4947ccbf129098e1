"""Reads JSON Lines as a stream: one object per line. Errors name file, line, column and field.

Stricter than `json`: no duplicate keys (`json` silently keeps the last value), no NaN or Infinity, no byte order mark,
no NUL, no lone surrogates, no line longer than `max_bytes` (such a line is read in pieces and dropped, so it is never
held in memory). Blank lines are skipped. Lines end with LF or CRLF only: U+2028 is part of a text.

Left out: compressed files, and JSON files that hold one array (an error says how to convert them).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ladder.base.errors import UserError
from ladder.data.kinds import Origin
from ladder.data.rows import Bad, Row, flaw

MAX_BYTES = 8 << 20
"""Default maximum length of a line."""

_BOMS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class _Flaw(ValueError):
    """A problem inside a line. key: the duplicate key, if that is the problem."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


def read(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Iterator[Row | Bad]:
    """The rows of a file, in order. Raises UserError if the file cannot be opened or read."""
    name = str(path)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(_lines(file, max_bytes), 1):
                if line is None:
                    error = UserError(
                        f"the line is longer than {max_bytes:,} bytes",
                        file=name,
                        line=number,
                        hint="split the row, or raise max_row_bytes",
                    )
                    yield Bad(Origin(name, number), error)
                elif line.strip():
                    yield _row(line.rstrip(b"\r\n"), Origin(name, number))
    except OSError as err:
        raise UserError(f"cannot be read: {err.strerror or err}", file=name, hint="check the path") from err


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes | None]:
    """The lines of a file; None for a line that is too long, which is read in pieces and dropped."""
    while line := file.readline(max_bytes + 2):
        if len(line.rstrip(b"\r\n")) <= max_bytes and (line.endswith(b"\n") or len(line) < max_bytes + 2):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(1 << 20)
        yield None


def _row(line: bytes, origin: Origin) -> Row | Bad:
    """The parsed line, or the reason why it cannot be parsed."""
    text = ""

    def bad(message: str, column: int | None = None, field: str | None = None, hint: str | None = None) -> Bad:
        error = UserError(message, file=origin.file, line=origin.line, column=column, field=field, hint=hint)
        return Bad(origin, error, line)

    for bom, coding in _BOMS.items():
        if origin.line == 1 and line.startswith(bom):
            return bad(f"begins with a byte order mark ({coding})", 1, hint="save the file as UTF-8 without one")
    if b"\0" in line:
        return bad("holds a NUL byte", line.index(b"\0") + 1, hint="remove it (is the file UTF-16?)")
    try:
        text = line.decode("utf-8")
        fields = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as err:
        column = len(line[: err.start].decode("utf-8")) + 1
        return bad(f"is not UTF-8 ({err.reason})", column, hint="the file may be truncated, or in another encoding")
    except json.JSONDecodeError as err:
        hint = "write one complete object per line"
        if text.lstrip().startswith("[") and origin.line == 1:
            hint += " (to convert a file that holds one array: jq -c '.[]' FILE > FILE.jsonl)"
        return bad(f"is not JSON: {err.msg}", err.colno, _open_field(text, err.pos), hint)
    except _Flaw as err:
        return bad(str(err), _second_column(text, err.key), err.key)
    except RecursionError:
        return bad("is nested too deep", hint="flatten the row")
    except ValueError as err:  # an integer with more digits than Python converts
        return bad(f"is JSON that Python cannot read: {err}")
    if not isinstance(fields, dict):
        hint = "write one object per line"
        if isinstance(fields, list):
            hint += " (to convert a file that holds one array: jq -c '.[]' FILE > FILE.jsonl)"
        return bad(f"must be an object, not {type(fields).__name__}", 1, hint=hint)
    problem = flaw(fields)
    if problem:
        field, message = problem
        return bad(message, None if "finite" in message else _escape_column(text), field)
    return Row(origin, fields, line)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its key-value pairs. Raises _Flaw on a duplicate key."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        duplicate = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise _Flaw("is a duplicate key of one object", duplicate)
    return fields


def _constant(name: str) -> NoReturn:
    raise _Flaw(f"{name} is not JSON")


def _second_column(text: str, key: str | None) -> int | None:
    """The column of the second occurrence of a key; None if the text has not exactly two (the key also occurs in other
    objects, so the column is ambiguous)."""
    spellings = {json.dumps(key), json.dumps(key, ensure_ascii=False)}
    columns = [m.start() + 1 for s in spellings for m in re.finditer(re.escape(s) + r"\s*:", text)]
    return max(columns) if len(columns) == 2 else None


_SURROGATE_PAIR = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(_SURROGATE_PAIR + r"|(\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2}))|\\.")


def _escape_column(text: str) -> int | None:
    """The column of the first escape sequence for a NUL or a lone surrogate."""
    return next((m.start() + 1 for m in _ESCAPE.finditer(text) if m[1]), None)


def _open_field(text: str, position: int) -> str | None:
    """The last key before the position of a syntax error."""
    keys = re.findall(r'"((?:[^"\\]|\\.)*)"\s*:', text[:position])
    return keys[-1] if keys else None
