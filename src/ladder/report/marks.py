"""Words of an answer that deserve a colour. Only the built-in world has some so far: its two notations.

A world's function says the class of one word, "" for none; everything else here is the same for all worlds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Classify = Callable[[str], str]
Pieces = list[tuple[str, str]]  # (class, text); together the text again

ARABIC = re.compile(r"[+-]?[0-9]")
CHINESE = re.compile(r"[〇一二三四五六七八九加减]+")


def chain(word: str) -> str:
    """The notation of a word of the built-in world: "a" (Arabic numerals) or "b" (Chinese ones)."""
    return "a" if ARABIC.fullmatch(word) else "b" if CHINESE.fullmatch(word) else ""


def classifier(recipe: dict[str, Any], name: str) -> Classify | None:
    """What colours the answers of a set; None when its world knows no classes."""
    return chain if is_chain(_task(recipe, name)) else None


def is_chain(spec: Any) -> bool:
    return spec == "chain" or (isinstance(spec, dict) and ("chain" in spec or spec.get("kind") == "chain"))


def _task(recipe: dict[str, Any], name: str) -> Any:
    """A set's task, else the recipe's."""
    spec = recipe.get("eval")
    sets = spec.get("sets") if isinstance(spec, dict) else None
    one = sets.get(name) if isinstance(sets, dict) else None
    own = one.get("task") if isinstance(one, dict) else None
    return own if own is not None else recipe.get("task")


def pieces(text: str, classify: Classify | None) -> Pieces:
    """The text cut at changes of class; neighbours of one class stay together, spaces between them too."""
    if classify is None:
        return [("", text)]
    found: Pieces = []
    for part in re.split(r"(\s+)", text):
        if not part:
            continue
        mark = "" if part.isspace() else classify(part)
        if found and (found[-1][0] == mark):
            found[-1] = (mark, found[-1][1] + part)
        else:
            found.append((mark, part))
    return found
