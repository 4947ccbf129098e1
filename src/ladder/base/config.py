"""Strict YAML reading for recipes: every error names file, line and field, and suggests the likely correction.

Duplicate and unknown keys are errors. `stage.field=value` overrides are parsed as YAML and applied before validation.
Left out: interpolation, includes, and any YAML tag beyond plain data.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ladder.base.errors import UserError

KeyLines = dict[tuple[str, ...], int]
"""Path of a key, e.g. ("stages", "rl", "steps") -> its line in the file, counted from 1."""
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""pydantic's error types for an unknown key: of a model, of a dataclass."""


class Config(BaseModel):
    """Base class of every configuration: frozen, no unknown keys. renamed: former key -> present key, for the error."""

    renamed: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


C = TypeVar("C", bound=Config)


class Document:
    """A YAML mapping as plain data, with the line of every key."""

    def __init__(self, path: Path, data: dict[str, Any], lines: KeyLines) -> None:
        self.path, self.data, self.lines = path, data, lines

    def error(self, message: str, at: Sequence[str | int], hint: str | None = None) -> UserError:
        """A UserError for the field `at`, with the line of that key or of its nearest ancestor in the file."""
        key_path = tuple(map(str, at))
        line = next((self.lines[key_path[:n]] for n in range(len(key_path), 0, -1) if key_path[:n] in self.lines), None)
        return UserError(message, file=self.path, line=line, field=".".join(key_path) or None, hint=hint)


def read(path: Path, overrides: Sequence[str] = (), known: Sequence[str] = ()) -> Document:
    """Reads a YAML mapping and applies overrides.

    known: top-level keys that an override may set although the file does not contain them. Raises UserError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as err:
        raise UserError("there is no such file", file=path) from err
    except OSError as err:
        raise UserError(f"cannot be read: {err.strerror}", file=path) from err
    except UnicodeDecodeError as err:
        raise UserError(f"is not UTF-8 text (byte {err.start})", file=path) from err
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise UserError(f"is not valid YAML: {getattr(err, 'problem', err)}", file=path, line=line) from err
    if not isinstance(node, yaml.MappingNode):
        raise UserError("must hold a mapping of keys to values", file=path)
    lines: KeyLines = {}
    _collect_lines(node, (), lines, path)
    document = Document(path, data, lines)
    for override in overrides:
        _apply_override(document, override, known)
    return document


def _collect_lines(node: yaml.Node, at: tuple[str, ...], lines: KeyLines, path: Path) -> None:
    """Fills `lines` with the line of every key and list item below `node`. Raises UserError on a duplicate key."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            key_path = (*at, str(key.value))
            line = key.start_mark.line + 1
            if key_path in lines:
                message = f"is given twice (first in line {lines[key_path]})"
                raise UserError(message, file=path, line=line, field=".".join(key_path))
            lines[key_path] = line
            _collect_lines(value, key_path, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*at, str(i))] = value.start_mark.line + 1
            _collect_lines(value, (*at, str(i)), lines, path)


def _apply_override(document: Document, override: str, known: Sequence[str]) -> None:
    """Applies `a.b.c=value` to the document's data. `NAME.field` is short for `stages.NAME.field`."""
    name, sign, text = override.partition("=")
    if not sign or not name:
        raise UserError(f"{override!r} is not an override", hint="write stage.field=value, e.g. r1_zero.steps=10")
    parts = name.split(".")
    stages = document.data.get("stages")
    if isinstance(stages, dict) and parts[0] in stages:
        parts = ["stages", *parts]
    elif parts[0] not in {*document.data, *known} and len(parts) > 1:
        names = {*document.data, *known, *(stages or {})}
        suggestion = near(parts[0], sorted(names))
        raise UserError(f"this recipe has no stage or section called {parts[0]!r}{suggestion}", field=name)
    section: Any = document.data
    for part in parts[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise UserError(f"{part!r} is a value, not a group of fields", field=name)
    try:
        section[parts[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise UserError(f"{text!r} is not a YAML value", field=name) from err


def check(cls: type[C], document: Document, data: Any, at: Sequence[str] = ()) -> C:
    """`cls(**data)`. Raises UserError for the first validation error, with its line in the file."""
    try:
        return cls.model_validate(data)
    except ValidationError as err:
        raise _first_error(cls, err, document, data, at) from err


def _first_error(
    cls: type[Config], err: ValidationError, document: Document, data: Any, at: Sequence[str]
) -> UserError:
    """The validation error that most likely names the user's mistake, as a UserError."""
    faults = [(*_key_path(fault, data), fault) for fault in err.errors()]
    faults_of_variant = Counter(variant for _, variant, _ in faults)
    # Of the variants of a union, the user meant the one with the fewest faults. An unknown key comes first: a misspelt
    # key also explains a missing one.
    path, _, fault = min(faults, key=lambda f: (faults_of_variant[f[1]] if f[1] else 0, f[2]["type"] not in UNKNOWN))
    path = [*at, *path]
    if fault["type"] in UNKNOWN:
        types, word = _types_at(cls, [str(p) for p in fault["loc"][:-1]]), str(fault["loc"][-1])
        for candidate in types:
            if isinstance(candidate, type) and issubclass(candidate, Config) and word in candidate.renamed:
                return document.error(f"is called {candidate.renamed[word]!r} now", path, "write the new name")
        return document.error(f"unknown key{near(word, _field_names(types))}", path)
    message = fault["msg"].removeprefix("Value error, ")
    got = "" if fault["type"] == "missing" else f", got {fault['input']!r:.80}"
    return document.error(f"{message[0].lower()}{message[1:]}{got}", path)


def _key_path(fault: Any, data: Any) -> tuple[list[str], tuple[str, ...]]:
    """(keys as they are written in the file, names of union variants) of a pydantic error: its `loc` mixes the two."""
    path: list[str] = []
    variants: list[str] = []
    for i, part in enumerate(map(str, fault["loc"])):
        items = dict(enumerate(data)) if isinstance(data, list) else data if isinstance(data, dict) else {}
        known = {str(k): v for k, v in items.items()}
        if part in known:
            path.append(part)
            data = known[part]
        elif fault["type"] == "missing" and i + 1 == len(fault["loc"]):
            path.append(part)
        else:
            variants.append(part)
    return path, tuple(variants)


def _types_at(cls: type[Config], path: Sequence[str]) -> list[Any]:
    """The types that `cls` declares at a pydantic `loc`, as far as the path leads through nested configurations."""
    declared: Any = cls
    for part in path:
        part = part.removesuffix("]").rpartition(", ")[2]  # with a validator it is "function-after[..., Data]"
        types = [declared, *get_args(declared)]
        variant = next((t for t in types if isinstance(t, type) and t.__name__ == part), None)
        if variant is not None:
            declared = variant
            continue
        field = declared.model_fields.get(part) if isinstance(declared, type) and issubclass(declared, Config) else None
        declared = field.annotation if field else None
    return [declared, *get_args(declared)]


def _field_names(types: Sequence[Any]) -> list[str]:
    """The keys that any of the types accepts."""
    names: list[str] = []
    for candidate in types:
        if isinstance(candidate, type) and issubclass(candidate, Config):
            names += [f.alias or name for name, f in candidate.model_fields.items()]
        elif is_dataclass(candidate):
            names += [f.name for f in fields(candidate)]
    return names


def check_known(cls: Any, options: Mapping[str, Any], field: str) -> None:
    """Raises UserError for a key that is no field of a dataclass: pydantic may ignore it without a word."""
    known = [f.name for f in fields(cls) if f.init]
    for name in options:
        if name not in known:
            raise UserError(f"unknown key{near(str(name), known)}", field=f"{field}.{name}")


def near(word: str, words: Collection[str]) -> str:
    """The end of a message about an unknown word: the nearest known word, else all known words."""
    close = difflib.get_close_matches(word, list(words), 1)
    if close:
        return f", did you mean {close[0]!r}?"
    return f" (there are: {', '.join(sorted(words))})" if words else ""


def validated(cls: Any, options: Any, field: str) -> Any:
    """An instance of `cls` from plain data. Raises UserError naming the invalid field below `field`."""
    kind: Any = cls
    if is_dataclass(kind) and isinstance(options, Mapping):
        check_known(kind, options, field)
    try:
        return TypeAdapter(cls).validate_python(options)
    except ValidationError as err:
        first = err.errors()[0]
        path = ".".join([field, *map(str, first["loc"])])
        if first["type"] in UNKNOWN:
            word = str(first["loc"][-1])
            raise UserError(f"unknown key{near(word, _field_names([cls]))}", field=path) from err
        raise UserError(first["msg"].removeprefix("Value error, "), field=path) from err
