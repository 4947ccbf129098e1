"""The kinds of examples: every file layout is converted to one of them, and the encoder reads nothing else.

A prompt is text or a list of chat messages, and its completions have the same form. An example carries its origin, so
that later errors about it can name file and line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from ladder.base.errors import UserError
from ladder.contract.rollouts import Message

Content = str | list[Message]
"""A prompt or a completion: text, or chat messages."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row was read. file: a path or `hub:name`. line: the line in the file, or the row's number; from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ExampleBase:
    origin: Origin | None = None

    def error(self, message: str, *, field: str | None = None, hint: str | None = None) -> UserError:
        """An error about this example, naming file and line if they are known."""
        if self.origin is None:
            return UserError(message, field=field, hint=hint)
        return UserError(message, file=self.origin.file, line=self.origin.line, field=field, hint=hint)

    def at(self, origin: Origin) -> Self:
        """A copy with this origin."""
        return replace(self, origin=origin)


@dataclass(frozen=True, slots=True)
class Text(_ExampleBase):
    """A document; all its tokens are trained."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat(_ExampleBase):
    """A conversation; the assistant's turns are trained. tools: JSON schemas passed to the chat template."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Answered(_ExampleBase):
    """A prompt and an answer to it, both text or both messages; the answer is trained."""

    prompt: Content
    completion: Content
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Preference(_ExampleBase):
    """Two answers to one prompt, `chosen` preferred over `rejected`."""

    prompt: Content
    chosen: Content
    rejected: Content
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Labelled(_ExampleBase):
    """A prompt and an answer to it with a binary label: True for a desirable answer."""

    prompt: Content
    completion: Content
    label: bool
    tools: list[dict[str, Any]] | None = None


Example = Text | Chat | Answered
"""What supervised fine-tuning trains on."""
ExampleKind = Example | Preference | Labelled
