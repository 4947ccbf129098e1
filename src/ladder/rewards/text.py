"""Extraction of the final answer from a completion: after the thinking, behind `####`, in \\boxed{}, in tags, or bare.

Every reward that compares answers uses these functions. The rules: only the text after the thinking is searched, the
last marker counts, and nothing is guessed. A completion whose thinking was opened and not closed has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Place = Literal["hash", "boxed", "tag", "bare", "last"]
"""hash: the rest of the line after `####`. boxed: inside \\boxed{}. tag: inside <answer></answer>. bare: the whole
text after the thinking. last: the last number anywhere after the thinking (lenient: it rewards lists of numbers)."""

OPEN, CLOSE = "<thinking>", "</thinking>"
_LAST = re.compile(
    r"(?<![\w.,/])[-+\u2212]?[$€£¥]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?(?![\w/]|[.,][0-9])"
)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def after_thinking(text: str, open: str = OPEN, close: str = CLOSE) -> str | None:
    """The text after the last closing tag; the whole text if it has no tag; None if the thinking was not closed."""
    _, separator, rest = text.rpartition(close)
    if open in rest:
        return None
    return rest if separator else text


def split_thinking(text: str, open: str = OPEN, close: str = CLOSE, opened: bool = False) -> tuple[str, str] | None:
    """(working, answer), both stripped, of a text that is exactly `<open>working<close>answer`; None for any other.

    opened: the prompt ended with the opening tag, so the text begins inside the thinking.
    """
    if text.count(open) != (0 if opened else 1) or text.count(close) != 1:
        return None
    before, _, rest = text.partition(close)
    if opened:
        return before.strip(), rest.strip()
    lead, separator, working = before.partition(open)
    if not separator or lead.strip():
        return None
    return working.strip(), rest.strip()


def find(text: str, places: Sequence[Place]) -> str | None:
    """The answer at the first of `places` that is present in the text, stripped; None if none is.

    text: the completion after the thinking.
    """
    for place in places:
        answer = _extract(text, place)
        if answer is not None:
            return answer.strip()
    return None


def check_places(places: Sequence[Place]) -> None:
    """Raises ValueError for no place, a repeated one, or one after "bare", which is present in every non-blank text."""
    if not places or len(set(places)) < len(places) or "bare" in places[:-1]:
        raise ValueError("places must name at least one place, none twice, and 'bare' last")


def _extract(text: str, place: Place) -> str | None:
    """The answer at one place; None if the place is not present in the text."""
    if place == "hash":
        _, marker, rest = text.rpartition("####")
        return rest.strip().partition("\n")[0] if marker else None
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
    r"""The content of the last \boxed{...} with its braces matched; None if there is none or it is not closed."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len(r"\boxed{")
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
    return None
