"""Objects of the user's that a recipe names by an import path: found when the recipe is planned, imported when it runs.

    {kind: "file.py:Name", field: value}      or just "file.py:Name"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladder.base.config import validated
from ladder.base.errors import UserError
from ladder.base.source import imported, locate


def parts(spec: Any, field: str) -> tuple[str, dict[str, Any]]:
    """(kind, fields). Raises UserError."""
    options = {"kind": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, dict) else {}
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError("is named by its kind", field=field, hint='write {kind: "file.py:Name"}')
    return kind, options


def located(spec: Any, field: str) -> Path | None:
    """The source file that defines the object; nothing is imported. Raises UserError."""
    kind, _ = parts(spec, field)
    try:
        return locate(kind)
    except UserError as err:
        raise UserError(err.message, file=err.file, line=err.line, field=field, hint=err.hint) from err


def loaded(kind: str, field: str) -> Any:
    """The object itself; its file is executed. Raises UserError."""
    try:
        return imported(kind)
    except UserError as err:
        raise UserError(err.message, file=err.file, line=err.line, field=field, hint=err.hint) from err


def built(spec: Any, field: str) -> Any:
    """An instance of the class that is named, a dataclass or configuration, with its fields. Raises UserError."""
    kind, options = parts(spec, field)
    return validated(loaded(kind, field), options, field)
