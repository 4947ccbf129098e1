"""Parses a recipe's specification of a reward or a task: `{name: {options}}`, `{kind: name, ...options}` or a name.

Strict: an unknown kind or key is an error that suggests the nearest known one, and a wrong type is an error.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ladder.base.config import check_known, near
from ladder.base.errors import UserError


def kind_of(
    spec: Any, known: Collection[str], what: str, field: str, *, by_path: bool = False
) -> tuple[str, dict[str, Any]]:
    """(kind, a copy of its options). what: the noun for messages, e.g. "reward", "task source". by_path: the kind may
    also be an import path (`file.py:name`). Raises UserError."""
    if isinstance(spec, str):
        kind, options = spec, {}
    elif isinstance(spec, Mapping) and "kind" in spec:
        kind, options = spec["kind"], {k: v for k, v in spec.items() if k != "kind"}
    elif isinstance(spec, Mapping) and len(spec) == 1:
        ((kind, options),) = spec.items()
    else:
        hint = f"write {{kind: {min(known)}, ...}} or {{{min(known)}: {{...}}}}"
        raise UserError(f"not a {what}: {spec!r}", field=field, hint=hint)
    if not isinstance(kind, str):
        raise UserError(f"a {what} is named by a word, not {kind!r}", field=field)
    if kind not in known and not (by_path and ":" in kind):
        raise UserError(f"no {what} is called {kind!r}{near(str(kind), known)}", field=field)
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"the options of {kind!r} must be a mapping, not {options!r}", field=field)
    return str(kind), dict(options or {})


def validate(cls: type, options: Mapping[str, Any], field: str) -> Any:
    """`cls(**options)` under pydantic's strict JSON rules (a list is a tuple, a string is no number). Raises UserError.

    cls: a dataclass, pydantic's or plain.
    """
    check_known(cls, options, field)
    try:
        return TypeAdapter(cls).validate_json(json.dumps(options), strict=True)
    except TypeError as err:
        raise UserError(f"not plain data: {err}", field=field) from err
    except ValidationError as err:
        first = err.errors()[0]
        path = ".".join([field, *map(str, first["loc"])])
        raise UserError(first["msg"].removeprefix("Value error, "), field=path) from err
