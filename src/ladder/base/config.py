"""Recipes: YAML read strictly, so that every mistake is named by file, line and field, with the likely hint.

Keys given twice and unknown keys are errors; `stage.field=value` overrides are YAML values put in their place before
anything is checked. Left out: interpolation, includes, and any tag beyond plain data.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ladder.base.errors import UserError

Lines = dict[tuple[str, ...], int]
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""pydantic's names for an unknown key, of models and of dataclasses."""


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys. renamed: keys that had another name once, old to new."""

    renamed: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


C = TypeVar("C", bound=Config)


class Document:
    """A YAML mapping as plain data, with the line of every key."""

    def __init__(self, path: Path, data: dict[str, Any], lines: Lines) -> None:
        self.path, self.data, self.lines = path, data, lines

    def error(self, message: str, at: Sequence[str | int], hint: str | None = None) -> UserError:
        """An error at a field, with the line of the nearest key that is written in the file."""
        place = tuple(map(str, at))
        line = next((self.lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in self.lines), None)
        return UserError(message, file=self.path, line=line, field=".".join(place) or None, hint=hint)


def read(path: Path, overrides: Sequence[str] = (), known: Sequence[str] = ()) -> Document:
    """Reads a YAML mapping and applies overrides. known: keys that an override may set though the file has them not.
    Raises UserError."""
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
    lines: Lines = {}
    _walk(node, (), lines, path)
    document = Document(path, data, lines)
    for override in overrides:
        _override(document, override, known)
    return document


def _walk(node: yaml.Node, at: tuple[str, ...], lines: Lines, path: Path) -> None:
    """Notes the line of every key; refuses keys given twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*at, str(key.value))
            line = key.start_mark.line + 1
            if place in lines:
                first = lines[place]
                raise UserError(f"is given twice (first in line {first})", file=path, line=line, field=".".join(place))
            lines[place] = line
            _walk(value, place, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*at, str(i))] = value.start_mark.line + 1
            _walk(value, (*at, str(i)), lines, path)


def _override(document: Document, override: str, known: Sequence[str]) -> None:
    """Puts `a.b.c=value` in its place. A stage's name may be left out of `stages.NAME.field`."""
    name, sign, text = override.partition("=")
    if not sign or not name:
        raise UserError(f"{override!r} is no override", hint="write stage.field=value, e.g. r1_zero.steps=10")
    parts = name.split(".")
    stages = document.data.get("stages")
    if isinstance(stages, dict) and parts[0] in stages:
        parts = ["stages", *parts]
    elif parts[0] not in {*document.data, *known} and len(parts) > 1:
        there = {*document.data, *known, *(stages or {})}
        end = near(parts[0], sorted(there))
        raise UserError(f"there is nothing called {parts[0]!r} in this recipe{end}", field=name)
    at: Any = document.data
    for part in parts[:-1]:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise UserError(f"{part!r} is a value, not a group of fields", field=name)
    try:
        at[parts[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise UserError(f"{text!r} is not a YAML value", field=name) from err


def check(cls: type[C], document: Document, data: Any, at: Sequence[str] = ()) -> C:
    """`cls(**data)`; the first fault as a UserError at its line."""
    try:
        return cls.model_validate(data)
    except ValidationError as err:
        raise _first(cls, err, document, data, at) from err


def _first(cls: type[Config], err: ValidationError, document: Document, data: Any, at: Sequence[str]) -> UserError:
    faults = [(*_written(fault, data), fault) for fault in err.errors()]
    tried = Counter(tags for _, tags, _ in faults)
    # of several alternatives, the one with the fewest faults was meant; a typo explains what is missing
    place, _, fault = min(faults, key=lambda f: (tried[f[1]] if f[1] else 0, f[2]["type"] not in UNKNOWN))
    place = [*at, *place]
    if fault["type"] in UNKNOWN:
        kinds, word = _kinds(cls, [str(p) for p in fault["loc"][:-1]]), str(fault["loc"][-1])
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Config) and word in kind.renamed:
                return document.error(f"is called {kind.renamed[word]!r} now", place, "write the new name")
        return document.error(f"unknown key{near(word, _fields(kinds))}", place)
    message = fault["msg"].removeprefix("Value error, ")
    got = "" if fault["type"] == "missing" else f", got {fault['input']!r:.80}"
    return document.error(f"{message[0].lower()}{message[1:]}{got}", place)


def _written(fault: Any, data: Any) -> tuple[list[str], tuple[str, ...]]:
    """A fault's place as the user wrote it, and the names of the alternatives that pydantic put into it."""
    place: list[str] = []
    tags: list[str] = []
    for i, part in enumerate(map(str, fault["loc"])):
        items = dict(enumerate(data)) if isinstance(data, list) else data if isinstance(data, dict) else {}
        known = {str(k): v for k, v in items.items()}
        if part in known:
            place.append(part)
            data = known[part]
        elif fault["type"] == "missing" and i + 1 == len(fault["loc"]):
            place.append(part)
        else:
            tags.append(part)
    return place, tuple(tags)


def _kinds(cls: type[Config], path: Sequence[str]) -> list[Any]:
    """The types that may stand at a place, as far as it is one configuration inside another."""
    kind: Any = cls
    for part in path:
        part = part.removesuffix("]").rpartition(", ")[2]  # with a validator it is "function-after[..., Data]"
        kinds = [kind, *get_args(kind)]
        named = next((k for k in kinds if isinstance(k, type) and k.__name__ == part), None)
        if named is not None:
            kind = named
            continue
        found = kind.model_fields.get(part) if isinstance(kind, type) and issubclass(kind, Config) else None
        kind = found.annotation if found else None
    return [kind, *get_args(kind)]


def _fields(kinds: Sequence[Any]) -> list[str]:
    """The keys known to any of some types."""
    names: list[str] = []
    for one in kinds:
        if isinstance(one, type) and issubclass(one, Config):
            names += [f.alias or name for name, f in one.model_fields.items()]
        elif is_dataclass(one):
            names += [f.name for f in fields(one)]
    return names


def near(word: str, words: Sequence[str]) -> str:
    """Ends a message on an unknown word: the nearest known one, or all there are."""
    close = difflib.get_close_matches(word, list(words), 1)
    if close:
        return f", did you mean {close[0]!r}?"
    return f" (there are: {', '.join(sorted(words))})" if words else ""




def validated(cls: Any, options: Any, field: str) -> Any:
    """`cls` made of plain data. Raises UserError at the field that is wrong."""
    try:
        return TypeAdapter(cls).validate_python(options)
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join([field, *map(str, first["loc"])])
        if first["type"] in UNKNOWN:
            whole = isinstance(cls, type) and issubclass(cls, Config)
            known = [*cls.model_fields] if whole else [f.name for f in fields(cls)]
            raise UserError(f"unknown key{near(str(first['loc'][-1]), known)}", field=place) from err
        raise UserError(first["msg"].removeprefix("Value error, "), field=place) from err
