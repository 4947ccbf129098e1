"""The user's objects that a recipe names by an import path: located when the recipe is planned, imported when it runs.

    {kind: "file.py:Name", field: value}      or just "file.py:Name"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladder.base.config import validated
from ladder.base.errors import UserError
from ladder.base.source import imported, locate


def parts(spec: Any, field: str) -> tuple[str, dict[str, Any]]:
    """Splits a specification into (kind, fields). Raises UserError."""
    options = {"kind": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, dict) else {}
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError("a kind is missing", field=field, hint='write {kind: "file.py:Name"}')
    return kind, options


def located(spec: Any, field: str) -> Path | None:
    """The source file that defines the object; no code is executed. Raises UserError."""
    kind, _ = parts(spec, field)
    try:
        return locate(kind)
    except UserError as err:
        raise UserError(err.message, file=err.file, line=err.line, field=field, hint=err.hint) from err


def loaded(kind: str, field: str) -> Any:
    """Imports the object; its file is executed. Raises UserError."""
    try:
        return imported(kind)
    except UserError as err:
        raise UserError(err.message, file=err.file, line=err.line, field=field, hint=err.hint) from err


def built(spec: Any, field: str) -> Any:
    """An instance of the named class (a dataclass or Config) with the given fields. Raises UserError."""
    kind, options = parts(spec, field)
    return validated(loaded(kind, field), options, field)
