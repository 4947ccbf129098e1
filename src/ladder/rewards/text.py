"""Where the answer stands in a text: after the thinking, behind a marker, in a box, in tags, or on its own.

Every reward that compares answers extracts them here. The rule everywhere: what follows the thinking is searched,
the last marker counts, and nothing is guessed. A text whose thinking was opened and never closed has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Place = Literal["hash", "boxed", "tag", "bare", "last"]
"""hash: the rest of the line after `####`. boxed: inside \\boxed{}. tag: inside <answer></answer>. bare: the whole
text after the thinking. last: the last number anywhere after the thinking (lenient: an essay of numbers may hit)."""

OPEN, CLOSE = "<thinking>", "</thinking>"
_LAST = re.compile(
    r"(?<![\w.,/])[-+\u2212]?[$€£¥]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?(?![\w/]|[.,][0-9])"
)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def after_thinking(text: str, open: str = OPEN, close: str = CLOSE) -> str | None:
    """What follows the last closing tag; the whole text when it holds no tag; None when thinking never ended."""
    _, found, rest = text.rpartition(close)
    if open in rest:
        return None
    return rest if found else text


def split_thinking(text: str, open: str = OPEN, close: str = CLOSE, opened: bool = False) -> tuple[str, str] | None:
    """(working, answer), both stripped, when the text is exactly `<open>working<close>answer`; None otherwise.

    opened: the prompt already ended with the opening tag, so the text begins inside the thinking.
    """
    if text.count(open) != (0 if opened else 1) or text.count(close) != 1:
        return None
    before, _, rest = text.partition(close)
    if opened:
        return before.strip(), rest.strip()
    lead, found, working = before.partition(open)
    if not found or lead.strip():
        return None
    return working.strip(), rest.strip()


def find(text: str, places: Sequence[Place]) -> str | None:
    """What stands at the first of `places` that holds something, stripped; None when none does.

    text: what follows the thinking.
    """
    for place in places:
        found = _at(text, place)
        if found is not None:
            return found.strip()
    return None


def check_places(places: Sequence[Place]) -> None:
    """Raises ValueError for places that are never reached: a text that is not blank is always bare."""
    if not places or len(set(places)) < len(places) or "bare" in places[:-1]:
        raise ValueError("places must be different ones, at least one, with 'bare' last")


def _at(text: str, place: Place) -> str | None:
    if place == "hash":
        _, mark, rest = text.rpartition("####")
        return rest.strip().partition("\n")[0] if mark else None
    if place == "boxed":
        return boxed(text)
    if place == "tag":
        tags = _TAG.findall(text)
        return tags[-1] if tags else None
    if place == "last":
        numbers = _LAST.findall(text)
        return numbers[-1] if numbers else None
    return text if text.strip() else None


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} with its braces matched; None when there is none or it never closes."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len(r"\boxed{")
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
    return None
