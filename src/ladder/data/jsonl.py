"""JSON Lines, read as a stream: one object a line, and every flaw said with file, line, column and field.

Stricter than `json`: no duplicate keys (one of the two values would silently win), no NaN or Infinity, no byte order
mark, no NUL, no half surrogate pairs, no line beyond `max_bytes` (such a line is skipped over without being held in
memory). Blank lines are passed over. Lines end with LF or CRLF, and with nothing else: U+2028 is part of a text.

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

_BOMS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class _Flaw(ValueError):
    """What is wrong inside a line. key: found twice."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


def read(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Iterator[Row | Bad]:
    """The rows of a file, in order. Raises UserError when the file cannot be opened or read."""
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
    """Lines of a file; None for one that is too long, which is read past in pieces."""
    while line := file.readline(max_bytes + 2):
        if len(line.rstrip(b"\r\n")) <= max_bytes and (line.endswith(b"\n") or len(line) < max_bytes + 2):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(1 << 20)
        yield None


def _row(line: bytes, origin: Origin) -> Row | Bad:
    """The parsed line, or why it cannot be."""
    text = ""

    def bad(message: str, column: int | None = None, field: str | None = None, hint: str | None = None) -> Bad:
        place = UserError(message, file=origin.file, line=origin.line, column=column, field=field, hint=hint)
        return Bad(origin, place, line)

    for bom, coding in _BOMS.items():
        if origin.line == 1 and line.startswith(bom):
            return bad(f"begins with a byte order mark ({coding})", 1, hint="save the file as UTF-8 without one")
    if b"\0" in line:
        return bad("holds a NUL byte", line.index(b"\0") + 1, hint="take it out (is the file UTF-16?)")
    try:
        text = line.decode("utf-8")
        fields = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as err:
        column = len(line[: err.start].decode("utf-8")) + 1
        return bad(f"is not UTF-8 ({err.reason})", column, hint="the file may be cut off, or in another encoding")
    except json.JSONDecodeError as err:
        hint = "write one whole object a line"
        if text.lstrip().startswith("[") and origin.line == 1:
            hint += " (a file that is one array: jq -c '.[]' FILE > FILE.jsonl)"
        return bad(f"is not JSON: {err.msg}", err.colno, _open_field(text, err.pos), hint)
    except _Flaw as err:
        return bad(str(err), _second(text, err.key), err.key)
    except RecursionError:
        return bad("is nested too deep", hint="flatten the row")
    except ValueError as err:  # a number of thousands of digits
        return bad(f"is not JSON that can be read: {err}")
    if not isinstance(fields, dict):
        hint = "write one object a line"
        if isinstance(fields, list):
            hint += " (a file that is one array: jq -c '.[]' FILE > FILE.jsonl)"
        return bad(f"must be an object, not {type(fields).__name__}", 1, hint=hint)
    found = flaw(fields)
    if found:
        field, wrong = found
        return bad(wrong, None if "finite" in wrong else _escaped(text), field)
    return Row(origin, fields, line)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise _Flaw("stands twice in one object", twice)
    return made


def _constant(name: str) -> NoReturn:
    raise _Flaw(f"{name} is not JSON")


def _second(text: str, key: str | None) -> int | None:
    """The column where a key stands for the second time; None when that cannot be told from the text alone."""
    written = {json.dumps(key), json.dumps(key, ensure_ascii=False)}
    found = [m.start() + 1 for w in written for m in re.finditer(re.escape(w) + r"\s*:", text)]
    return max(found) if len(found) == 2 else None


_HALVES = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(_HALVES + r"|(\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2}))|\\.")


def _escaped(text: str) -> int | None:
    """The column of the first escape that makes a NUL or half a surrogate pair."""
    return next((m.start() + 1 for m in _ESCAPE.finditer(text) if m[1]), None)


def _open_field(text: str, at: int) -> str | None:
    """The key nearest before a position: the field in which a line breaks."""
    keys = re.findall(r'"((?:[^"\\]|\\.)*)"\s*:', text[:at])
    return keys[-1] if keys else None
