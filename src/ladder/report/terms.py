"""The page's glossary: definitions of the terms that occur on it."""

from __future__ import annotations

from collections.abc import Callable

from ladder.report import kinds, words
from ladder.report.run import RunFiles, number

Term = tuple[str, str]


def terms(run: RunFiles) -> list[Term]:
    """(term, definition) of every term that occurs on the page of this run."""
    figures = [f for m in run.models for f in m.figures.values()]
    metrics = [m for s in run.stages for m in s.metrics[:1]]
    samples = max((number(f, "samples") or 1 for f in figures), default=1)
    interval = (
        "Wilson's, one answer to each problem"
        if samples == 1 and any(not run.graded(n) for n in run.sets)
        else f"bootstrap over problems, {words.number(samples)} answers to each problem"
    )
    temperature = next((t for f in figures if (t := number(f, "temperature")) is not None), 1.0)
    if all(run.graded(n) for n in run.sets) and samples == 1:
        interval = "bootstrap over problems"
    entries: list[tuple[Callable[[], bool], str, str]] = [
        (
            lambda: any(not run.graded(n) for n in run.sets),
            "right",
            f"The share of right answers, sampled at temperature {words.number(temperature)}.",
        ),
        (lambda: any(run.graded(n) for n in run.sets), "score", _score_definition(run, temperature)),
        (lambda: any("low" in f for f in figures), "95% interval", f"The thin line on a bar: {interval}."),
        (
            lambda: any("greedy" in f for f in figures),
            "greedy",
            "Greedy decoding: the same problems answered with the likeliest token at every position.",
        ),
        (lambda: any("length" in f for f in figures), "tokens", "The mean length of an answer, in tokens."),
        (
            lambda: any("mixed" in f for f in figures),
            "mixed",
            "The share of worked answers (those with steps before the final answer) that use both notations.",
        ),
        (
            lambda: any("entropy" in m for m in metrics),
            "entropy",
            "The mean entropy of the next-token distribution, in nats; 0: the policy is deterministic.",
        ),
        (
            lambda: any("kl_base" in m for m in metrics),
            "KL from the base",
            "The KL divergence of the policy's next-token distribution from that of the model that training on rewards "
            "started from; 0: equal.",
        ),
        (
            lambda: any(s.is_data and s.figures for s in run.stages),
            "documents",
            "A data stage trains no model: its row describes the documents it kept.",
        ),
    ]
    return [(name, text) for occurs, name, text in entries if occurs()]


def _score_definition(run: RunFiles, temperature: float) -> str:
    """The definition of "score" with the names of the rewards."""
    names = dict.fromkeys(n for s in run.sets if run.graded(s) for n in kinds.names_in(run.judge(s)))
    judge = f" by {words.listed(list(names))}" if names else ""
    text = f"The mean reward of an answer{judge}, sampled at temperature {words.number(temperature)}; not a share. "
    parts = any(str(k).startswith("score/") for m in run.models for f in m.figures.values() for k in f)
    text += "Bars end at the set's largest value." + (" Small print: the means of its components." if parts else "")
    return text
