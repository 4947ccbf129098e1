"""What a user did that cannot work, said so that they can mend it. The command line prints it without a traceback."""

from __future__ import annotations

from pathlib import Path


class UserError(ValueError):
    """One paragraph naming file, line, field and the hint, as far as they are known.

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
        place = ":".join(str(p) for p in (file, line, column) if p is not None) + ": " if file is not None else ""
        name = f"{field}: " if field else ""
        end = f". Hint: {hint}" if hint else ""
        super().__init__(f"{place}{name}{message.rstrip('.') if hint else message}{end}")


def missing_extra(package: str, extra: str, why: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(
        f"{why} needs the package {package!r}, which is not installed",
        hint=f"pip install 'signal-ladder[{extra}]'",
    )
