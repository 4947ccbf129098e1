"""What the words on the page mean; only those that occur on it."""

from __future__ import annotations

from collections.abc import Callable

from ladder.report import kinds, words
from ladder.report.run import Run, number

Term = tuple[str, str]


def terms(run: Run) -> list[Term]:
    """What the words on the page mean; only those that occur."""
    figures = [f for m in run.models for f in m.figures.values()]
    metrics = [m for s in run.stages for m in s.metrics[:1]]
    samples = max((number(f, "samples") or 1 for f in figures), default=1)
    interval = (
        "Wilson's, one answer to each problem"
        if samples == 1 and any(not run.graded(n) for n in run.sets)
        else f"bootstrap over problems, {words.number(samples)} answers to each"
    )
    temperature = next((t for f in figures if (t := number(f, "temperature")) is not None), 1.0)
    if all(run.graded(n) for n in run.sets) and samples == 1:
        interval = "bootstrap over problems"
    known: list[tuple[Callable[[], bool], str, str]] = [
        (
            lambda: any(not run.graded(n) for n in run.sets),
            "right",
            "The share of problems whose answer is right, drawn at temperature "
            f"{words.number(temperature)}: as the model writes.",
        ),
        (lambda: any(run.graded(n) for n in run.sets), "score", _score(run, temperature)),
        (lambda: any("low" in f for f in figures), "95% interval", f"The thin line on a bar: {interval}."),
        (
            lambda: any("greedy" in f for f in figures),
            "greedy",
            "The same problems answered by always taking the likeliest token.",
        ),
        (lambda: any("length" in f for f in figures), "tokens", "The mean length of an answer, in the model's tokens."),
        (
            lambda: any("mixed" in f for f in figures),
            "mixed",
            "The share of worked answers (those with steps before the answer) that use both notations.",
        ),
        (lambda: any("entropy" in m for m in metrics), "entropy", "0: it always writes the same; more: it varies."),
        (
            lambda: any("kl_base" in m for m in metrics),
            "KL from the base",
            "How much the model's next-token probabilities differ from those of the model that reward-driven training "
            "began from; 0: not at all.",
        ),
        (
            lambda: any(s.is_data and s.figures for s in run.stages),
            "documents",
            "A stage that keeps answers has no model of its own: its row describes the documents it kept.",
        ),
    ]
    return [(name, text) for there, name, text in known if there()]


def _score(run: Run, temperature: float) -> str:
    """What a score is a mean of."""
    names = dict.fromkeys(n for s in run.sets if run.graded(s) for n in kinds.names_in(run.judge(s)))
    judge = f" by {words.listed(list(names))}" if names else ""
    text = f"The mean of what an answer is given{judge}, drawn at temperature {words.number(temperature)}; no share. "
    parts = any(str(k).startswith("score/") for m in run.models for f in m.figures.values() for k in f)
    text += "Bars end at the set's largest value." + (" Below it, small: the means of its parts." if parts else "")
    return text
