"""What can be said of an answer: right, worked out, in which notation, clean. All from its text."""

from __future__ import annotations

from collections.abc import Sequence

from ladder.contract.rollouts import Outcome, Rollout, Score
from ladder.tasks.chain.words import ANSWER, CHECK, DIGITS_A, LABELS, NOTATION_A, NOTATION_B, THUS

_LABELS = frozenset(LABELS)


def is_right(text: str, stop: str, gold: str) -> bool:
    """It ended by itself, has one answer sign, and ends with it and the right digit."""
    words = text.split()
    return stop == "eos" and words.count(ANSWER) == 1 and words[-2:] == [ANSWER, gold] and gold in DIGITS_A


def working(text: str) -> list[str]:
    """The words before the answer sign."""
    words = text.split()
    return words[: words.index(ANSWER)] if ANSWER in words else words


def is_worked(text: str) -> bool:
    """At least one labelled step stands before the answer."""
    return any(w in _LABELS for w in working(text))


def is_mixed(text: str) -> bool:
    """The working uses both notations."""
    words = set(working(text))
    return bool(words & NOTATION_A) and bool(words & NOTATION_B)


def is_clean(text: str) -> bool:
    """Worked in Arabic notation only, without second thoughts or flourish."""
    words = set(text.split())
    return is_worked(text) and not words & NOTATION_B and not words & {CHECK, THUS}


def correct(group: Sequence[Rollout]) -> list[Outcome]:
    """The reward: 1 for a right answer, else 0. Nothing about form, notation or length."""
    return [Score(float(is_right(r.text, r.stop, str(r.task.answer)))) for r in group]


def stats(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Figures of answers, see `text_stats`."""
    return text_stats([r.text for r in rollouts])


def text_stats(texts: Sequence[str]) -> dict[str, float]:
    """worked: share of answers with steps; mixed: share of those in both notations; checks: share with a `?`."""
    worked = [t for t in texts if is_worked(t)]
    n = max(1, len(texts))
    return {
        "worked": len(worked) / n,
        "mixed": sum(map(is_mixed, worked)) / max(1, len(worked)),
        "checks": sum(CHECK in t for t in texts) / n,
    }
