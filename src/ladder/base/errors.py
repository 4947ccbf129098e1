"""Errors that the user can correct: they name the place and the remedy. The command line prints no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A mistake in the user's input. The message is one paragraph: file, line, column, field and hint where known.

    >>> str(UserError("not a number: 'x'", file="a.yaml", line=3, field="steps", hint="give a positive integer"))
    "a.yaml:3: steps: not a number: 'x'. Hint: give a positive integer"
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        column: int | None = None,
        field: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.file, self.line, self.field, self.hint = message, file, line, field, hint
        self.column = column
        location = ":".join(str(p) for p in (file, line, column) if p is not None) + ": " if file is not None else ""
        field_prefix = f"{field}: " if field else ""
        hint_suffix = f". Hint: {hint}" if hint else ""
        super().__init__(f"{location}{field_prefix}{message.rstrip('.') if hint else message}{hint_suffix}")


@contextmanager
def at_field(field: str) -> Iterator[None]:
    """Gives a UserError the recipe field that it is about."""
    try:
        yield
    except UserError as err:
        raise UserError(err.message, file=err.file, line=err.line, field=field, hint=err.hint) from err


def missing_extra(package: str, extra: str, why: str) -> UserError:
    """The error for an optional package that is not installed. why: the feature that needs it, e.g. "a .gguf file"."""
    return UserError(
        f"{why} needs the package {package!r}, which is not installed",
        hint=f"pip install 'signal-ladder[{extra}]'",
    )
