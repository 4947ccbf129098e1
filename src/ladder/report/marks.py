"""Colours for the words of an answer. Only the built-in task world has them: its two notations.

A task world supplies one function that gives every word of an answer a class ("" for none); the rest is shared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Classify = Callable[[list[str]], list[str]]
Pieces = list[tuple[str, str]]  # (class, text); the texts joined give the answer

ARABIC = re.compile(r"[+-]?[0-9]")
CHINESE = re.compile(r"[〇一二三四五六七八九加减]+")
ANSWER = "#"


def chain(words: list[str]) -> list[str]:
    """Classes of the words before `#`: "a" for Arabic notation, "b" for Chinese. The final answer is always Arabic."""
    end = words.index(ANSWER) if ANSWER in words else len(words)
    return [_notation(w) if i < end else "" for i, w in enumerate(words)]


def _notation(word: str) -> str:
    return "a" if ARABIC.fullmatch(word) else "b" if CHINESE.fullmatch(word) else ""


def classifier(recipe: dict[str, Any], name: str) -> Classify | None:
    """The function that classifies the words of an evaluation set's answers; None for other task worlds."""
    return chain if is_chain(_task_spec(recipe, name)) else None


def is_chain(spec: Any) -> bool:
    """Whether a task's or reward's specification names the built-in world `chain`."""
    return spec == "chain" or (isinstance(spec, dict) and ("chain" in spec or spec.get("kind") == "chain"))


def _task_spec(recipe: dict[str, Any], name: str) -> Any:
    """The specification of an evaluation set's task: the set's own, else the recipe's."""
    spec = recipe.get("eval")
    sets = spec.get("sets") if isinstance(spec, dict) else None
    set_spec = sets.get(name) if isinstance(sets, dict) else None
    set_task = set_spec.get("task") if isinstance(set_spec, dict) else None
    return set_task if set_task is not None else recipe.get("task")


def pieces(text: str, classify: Classify | None) -> Pieces:
    """The text split where the class changes. Neighbouring words of one class form one piece with their spaces."""
    if classify is None or not text:
        return [("", text)] if text else []
    parts = re.split(r"(\s+)", text)  # words at even indices, spaces at odd ones
    classes = classify(parts[::2])
    split: Pieces = [(classes[0], parts[0])]
    for i in range(1, len(classes)):
        (last_class, last_text), space, word = split[-1], parts[2 * i - 1], parts[2 * i]
        if classes[i] == last_class:
            split[-1] = (last_class, last_text + space + word)
        elif last_class:  # the space between two classes has no class
            split += [("", space), (classes[i], word)] if classes[i] else [("", space + word)]
        else:
            split[-1] = ("", last_text + space)
            split.append((classes[i], word))
    return [(word_class, piece) for word_class, piece in split if piece]
