"""Formats numbers, durations, lists and untrusted text for the report."""

from __future__ import annotations

from typing import Any

NONE = "–"


def share(x: float | None) -> str:
    """A share as a percentage: 0.9632 -> 96.3%. Only exactly 0 and 1 become 0% and 100%."""
    if x is None:
        return NONE
    if not 0 <= x <= 1:
        return number(x)
    text = f"{100 * x:.1f}"
    if x in (0, 1):
        return f"{x:.0%}"
    return {"0.0": "<0.1", "100.0": ">99.9"}.get(text, text) + "%"


def score(x: float | None) -> str:
    """A mean score of any size: 1.4898 -> 1.49."""
    if x is None:
        return NONE
    return number(x) if 0 < abs(x) < 0.005 or abs(x) >= 1000 else f"{x:.2f}"


def number(x: float | None) -> str:
    """A number with about three significant digits."""
    if x is None:
        return NONE
    if x == int(x) and abs(x) < 1e15:
        return f"{int(x):,}"
    size = abs(x)
    if size < 1e-9:  # rounding
        return "0"
    if size >= 1000:
        return f"{x:,.0f}"
    if size >= 0.001:
        return f"{x:.3g}" if size < 100 else f"{x:.1f}"
    return f"{x:.1e}"


def tokens(x: float | None) -> str:
    """A mean number of tokens: 22.08 -> 22.1."""
    return NONE if x is None else f"{x:,.1f}"


def duration(seconds: float | None) -> str:
    """A time in seconds: 41.2 -> 41 s; 176 -> 2 min 56 s; 5400 -> 1 h 30 min."""
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    whole = round(whole / 60)
    return f"{whole // 60} h {whole % 60} min" if whole % 60 else f"{whole // 60} h"


def listed(parts: list[str]) -> str:
    """The parts as an enumeration: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def visible(text: Any) -> str:
    """Text with control and bidirectional-override characters replaced by visible symbols."""
    return "".join(_visible_character(c) for c in (text if isinstance(text, str) else str(text)))


def _visible_character(c: str) -> str:
    if c in "\n\t":
        return c
    if c < " ":
        return chr(0x2400 + ord(c))  # the Unicode control pictures
    invisible = c == "\x7f" or "\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069"
    return "\N{REPLACEMENT CHARACTER}" if invisible else c
