"""The normal form of each kind of row: what every file layout becomes, and the only thing the encoder reads.

A prompt is text or a list of chat messages, and the completions to it are of the same form. Where a row came from
travels with it, so that whatever is found wrong later can still be said with file and line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from ladder.base.errors import UserError
from ladder.contract.rollouts import Message

Content = str | list[Message]


@dataclass(frozen=True, slots=True)
class Origin:
    """file: a path or `hub:name`. line: of the file, or the number of the row; counts from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    origin: Origin | None = None

    def error(self, message: str, *, field: str | None = None, hint: str | None = None) -> UserError:
        """An error about this row, naming file and line where they are known."""
        if self.origin is None:
            return UserError(message, field=field, hint=hint)
        return UserError(message, file=self.origin.file, line=self.origin.line, field=field, hint=hint)

    def at(self, origin: Origin) -> Self:
        return replace(self, origin=origin)


@dataclass(frozen=True, slots=True)
class Text(_Kind):
    """A document; all of it is trained."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat(_Kind):
    """A conversation; the assistant's turns are trained. tools: JSON schemas handed to the chat template."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Answered(_Kind):
    """A prompt and an answer to it, both text or both messages; the answer is trained."""

    prompt: Content
    completion: Content
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Preference(_Kind):
    """Two answers to one prompt, the first preferred."""

    prompt: Content
    chosen: Content
    rejected: Content
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Labelled(_Kind):
    """An answer and whether it was liked."""

    prompt: Content
    completion: Content
    label: bool
    tools: list[dict[str, Any]] | None = None


Example = Text | Chat | Answered
Kind = Example | Preference | Labelled
