"""Properties of an answer, all from its text: correct, worked, mixed notation, clean; and the reward `chain`."""

from __future__ import annotations

from collections.abc import Sequence

from ladder.contract.rollouts import Outcome, Rollout, Score
from ladder.tasks.chain.words import ANSWER, CHECK, DIGITS_A, LABELS, NOTATION_A, NOTATION_B, THUS

_LABELS = frozenset(LABELS)


def is_right(text: str, stop: str, gold: str) -> bool:
    """Whether the answer ended with EOS, has one answer sign, and ends with that sign and the gold digit."""
    words = text.split()
    return stop == "eos" and words.count(ANSWER) == 1 and words[-2:] == [ANSWER, gold] and gold in DIGITS_A


def working(text: str) -> list[str]:
    """The words before the answer sign; all words if it has none."""
    words = text.split()
    return words[: words.index(ANSWER)] if ANSWER in words else words


def is_worked(text: str) -> bool:
    """Whether at least one labelled step precedes the answer sign."""
    return any(w in _LABELS for w in working(text))


def is_mixed(text: str) -> bool:
    """Whether the working uses both notations."""
    words = set(working(text))
    return bool(words & NOTATION_A) and bool(words & NOTATION_B)


def is_clean(text: str) -> bool:
    """Whether the answer is worked, in Arabic notation only, and without a check `?` or a flourish `∴`."""
    words = set(text.split())
    return is_worked(text) and not words & NOTATION_B and not words & {CHECK, THUS}


def correct(group: Sequence[Rollout]) -> list[Outcome]:
    """The reward `chain`: 1 for a correct answer, otherwise 0, whatever its form, notation or length."""
    return [Score(float(is_right(r.text, r.stop, str(r.task.answer)))) for r in group]


def stats(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The figures of `text_stats` for rollouts."""
    return text_stats([r.text for r in rollouts])


def text_stats(texts: Sequence[str]) -> dict[str, float]:
    """Figures of answers. worked: share with steps. mixed: share of the worked ones that use both notations. checks:
    share with a `?`."""
    worked = [t for t in texts if is_worked(t)]
    n = max(1, len(texts))
    return {
        "worked": len(worked) / n,
        "mixed": sum(map(is_mixed, worked)) / max(1, len(worked)),
        "checks": sum(CHECK in t for t in texts) / n,
    }
