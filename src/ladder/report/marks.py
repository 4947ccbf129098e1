"""Words of an answer that deserve a colour. Only the built-in world has some so far: its two notations.

A world's function gives every word of an answer its class, "" for none; everything else is the same for all worlds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Classify = Callable[[list[str]], list[str]]
Pieces = list[tuple[str, str]]  # (class, text); together the text again

ARABIC = re.compile(r"[+-]?[0-9]")
CHINESE = re.compile(r"[〇一二三四五六七八九加减]+")
ANSWER = "#"


def chain(words: list[str]) -> list[str]:
    """The notation of the working's words: "a" (Arabic numerals), "b" (Chinese ones). The answer is always Arabic."""
    end = words.index(ANSWER) if ANSWER in words else len(words)
    return [_notation(w) if i < end else "" for i, w in enumerate(words)]


def _notation(word: str) -> str:
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
    """The text cut at changes of class. Words of one class stay together, with the space between them."""
    if classify is None or not text:
        return [("", text)] if text else []
    parts = re.split(r"(\s+)", text)
    marks = classify(parts[::2])
    found: Pieces = [(marks[0], parts[0])]
    for i in range(1, len(marks)):
        (last, before), space, word = found[-1], parts[2 * i - 1], parts[2 * i]
        if marks[i] == last:
            found[-1] = (last, before + space + word)
        elif last:  # the space between two classes belongs to neither
            found += [("", space), (marks[i], word)] if marks[i] else [("", space + word)]
        else:
            found[-1] = ("", before + space)
            found.append((marks[i], word))
    return [(mark, piece) for mark, piece in found if piece]
