"""The user's objects that a recipe names by an import path: located when the recipe is planned, imported when it runs.

    {kind: "file.py:Name", field: value}      or just "file.py:Name"
"""

from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from ladder.base.config import validated
from ladder.base.errors import UserError, at_field
from ladder.base.source import imported, locate


def parts(spec: Any, field: str) -> tuple[str, dict[str, Any]]:
    """Splits a specification into (kind, fields). Raises UserError."""
    options = {"kind": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, dict) else {}
    if "kind" not in options and len(options) == 1:
        ((kind, inner),) = options.items()
        options = {"kind": kind} | (dict(inner) if isinstance(inner, dict) else {})
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError("a kind is missing", field=field, hint='write {kind: "file.py:Name"}')
    return kind, options


def located(spec: Any, field: str) -> Path | None:
    """The source file that defines the object; no code is executed. Raises UserError."""
    kind, _ = parts(spec, field)
    with at_field(field):
        return locate(kind)


def sources(spec: Any, field: str) -> list[Path]:
    """The file of the user's object that a spec names, if it names one. Raises UserError."""
    kind, _ = parts(spec, field) if spec is not None else ("", {})
    path = located(kind, field) if ":" in kind else None
    return [] if path is None else [path]


def loaded(kind: str, field: str) -> Any:
    """Imports the object; its file is executed. Raises UserError."""
    with at_field(field):
        return imported(kind)


def built(spec: Any, field: str) -> Any:
    """An instance of the named class (a dataclass or Config) with the given fields. Raises UserError."""
    kind, options = parts(spec, field)
    return validated(described(kind, field), options, field)


def described(kind: str, field: str) -> Any:
    """A class whose fields are known: a dataclass. Raises UserError for anything else."""
    cls = loaded(kind, field)
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise UserError(f"{kind} is no dataclass", field=field, hint="write @dataclass above its class")
    return cls
