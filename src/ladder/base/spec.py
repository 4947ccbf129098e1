"""Parses a recipe's specification of a reward or a task: `{name: {options}}`, `{kind: name, ...options}` or a name.

Strict: an unknown kind or key is an error that suggests the nearest known one, and a wrong type is an error.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

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
    if kind not in known and not (by_path and isinstance(kind, str) and ":" in kind):
        raise UserError(f"no {what} is called {kind!r}{near(str(kind), known)}", field=field)
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"the options of {kind!r} must be a mapping, not {options!r}", field=field)
    return str(kind), dict(options or {})


def validate(cls: type, options: Mapping[str, Any], field: str) -> Any:
    """`cls(**options)` under pydantic's strict JSON rules (a list is a tuple, a string is no number). Raises UserError.

    cls: a pydantic dataclass, or a dataclass whose `__pydantic_config__` forbids extra keys.
    """
    try:
        return TypeAdapter(cls).validate_json(json.dumps(options), strict=True)
    except TypeError as err:
        raise UserError(f"not plain data: {err}", field=field) from err
    except ValidationError as err:
        unknown = ("unexpected_keyword_argument", "extra_forbidden")
        first = min(err.errors(), key=lambda e: e["type"] not in unknown)  # a misspelt key also explains a missing one
        path = ".".join([field, *map(str, first["loc"])])
        if first["type"] in unknown:
            names = list(cls.__dataclass_fields__)
            raise UserError(f"unknown key{near(str(first['loc'][-1]), names)}", field=path) from err
        raise UserError(first["msg"].removeprefix("Value error, "), field=path) from err


def near(word: str, words: Collection[str]) -> str:
    """The end of a message about an unknown word: the nearest known word, else all known words."""
    close = difflib.get_close_matches(word, list(words), 1)
    return f", did you mean {close[0]!r}?" if close else f" (there are: {', '.join(sorted(words))})"
