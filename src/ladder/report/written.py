"""Sample answers: the same problems answered by the model of every stage, and one problem before and after a stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ladder.report import marks, words
from ladder.report.run import Figures, RunFiles, Stage, number


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One answer of a stage's model. verdict: right, partly, wrong, unknown or scored. mark: its symbol. said: its
    words. note: a line with the length and, unless right or wrong, the verdict. long: whether it gets a scroll bar."""

    stage: str
    verdict: str
    mark: str
    said: str
    pieces: marks.Pieces
    note: str
    long: bool


@dataclass(frozen=True, slots=True)
class AnswerExample:
    """One problem answered before and after a stage. answer: the reference answer."""

    prompt: str
    answer: str
    before: ShownAnswer
    after: ShownAnswer


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with the answers of all stages. answer: the reference answer."""

    prompt: str
    answer: str
    answers: list[ShownAnswer]


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """The shown problems of an evaluation set. first: shown at once. rest: folded away."""

    name: str
    first: list[Problem] = field(default_factory=list)
    rest: list[Problem] = field(default_factory=list)


OPEN = 3
"""Number of problems of a set that are shown unfolded."""
LONG = 400
"""An answer with more characters gets a scroll bar."""
MARKS = {"right": "✓", "wrong": "✗", "partly": "◐", "unknown": "?", "scored": "·"}


def problem_sets(run: RunFiles) -> list[ProblemSet]:
    """The shown problems of every evaluation set, each with the answers of all stages."""
    samples: dict[str, dict[str, list[tuple[Stage, Figures]]]] = {}  # set -> problem -> (stage, its sample)
    for stage in run.stages:
        for sample in stage.samples:
            key = str(sample.get("task", sample.get("prompt")))
            samples.setdefault(str(sample.get("set", "")), {}).setdefault(key, []).append((stage, sample))
    names = [n for n in run.sets if n in samples] + [n for n in samples if n not in run.sets]
    sets = []
    for name in names:
        classify = marks.classifier(run.recipe, name)
        problems = [_problem(answers, classify, run.graded(name)) for answers in samples[name].values()]
        sets.append(ProblemSet(name, problems[:OPEN], problems[OPEN:]))
    return sets


def _problem(answers: list[tuple[Stage, Figures]], classify: marks.Classify | None, graded: bool) -> Problem:
    first = answers[0][1]
    return Problem(
        prompt(first.get("prompt")),
        words.visible(first.get("answer", "")),
        [_shown_answer(stage, sample, classify, graded) for stage, sample in answers],
    )


def prompt(value: object) -> str:
    """The text of a prompt; of a conversation, one line `role: content` for each message."""
    if isinstance(value, list):
        messages = [m for m in value if isinstance(m, dict)]
        return "\n".join(words.visible(f"{m.get('role', '')}: {m.get('content', '')}") for m in messages)
    return words.visible(value if value is not None else "")


def _shown_answer(stage: Stage, sample: Figures, classify: marks.Classify | None, graded: bool) -> ShownAnswer:
    reward, text = number(sample, "reward"), words.visible(sample.get("text") or "")
    verdict = "unknown" if reward is None else "right" if reward >= 1 else "wrong" if reward <= 0 else "partly"
    said = "not judged" if reward is None else verdict if reward in (0, 1) else f"reward {words.number(reward)}"
    if graded and reward is not None:
        verdict, said = _graded_verdict(sample), f"score {words.score(reward)}"
    length = number(sample, "length")
    notes = [said] if said not in ("right", "wrong") else []
    notes += [f"{words.number(length)} tokens"] if length is not None else []
    return ShownAnswer(
        stage.name,
        verdict,
        MARKS[verdict],
        said,
        marks.pieces(text, classify),
        " · ".join(notes),
        len(text) > LONG,
    )


def _graded_verdict(sample: Figures) -> str:
    """The verdict of a scored answer: its component `right` decides; without one, the verdict is "scored"."""
    right = number(sample.get("parts"), "right")
    return {1.0: "right", 0.0: "wrong"}.get(right, "scored") if right is not None else "scored"


def example(run: RunFiles, stage: Stage, before: Stage) -> AnswerExample | None:
    """A problem that the stage's model solves better than the model `before`; None when there is none.

    On sets of right and wrong answers: the newly solved problem whose answer changed most in length. On scored sets:
    the problem whose score rose most.
    """
    old_samples = {(s.get("set"), s.get("task")): s for s in before.samples if s.get("task") is not None}
    pairs = [(old_samples[k], s) for s in stage.samples if (k := (s.get("set"), s.get("task"))) in old_samples]
    improved = [p for p in pairs if _is_improved(run, *p)]
    if not improved:
        return None
    old, new = max(improved, key=lambda p: (_score_gain(run, *p), _length_change(*p)))
    graded = run.graded(str(new.get("set", "")))
    classify = marks.classifier(run.recipe, str(new.get("set", "")))
    return AnswerExample(
        prompt(new.get("prompt")),
        words.visible(new.get("answer", "")),
        _with_score(_shown_answer(before, old, classify, graded), graded),
        _with_score(_shown_answer(stage, new, classify, graded), graded),
    )


def _length_change(old: Figures, new: Figures) -> float:
    return abs((number(old, "length") or 0) - (number(new, "length") or 0))


def _is_improved(run: RunFiles, old: Figures, new: Figures) -> bool:
    """Whether an answer went from wrong to right or, on a scored set, got a higher score."""
    return _score_gain(run, old, new) > 0 or (number(old, "reward") == 0 and number(new, "reward") == 1)


def _score_gain(run: RunFiles, old: Figures, new: Figures) -> float:
    """The rise of an answer's score; 0 on sets of right and wrong answers."""
    before, after = number(old, "reward"), number(new, "reward")
    return after - before if run.graded(str(new.get("set", ""))) and before is not None and after is not None else 0.0


def _with_score(answer: ShownAnswer, graded: bool) -> ShownAnswer:
    """The answer with its score beside the stage's name."""
    return replace(answer, stage=f"{answer.stage} · {answer.said}") if graded else answer
