"""What the stages' models wrote: the same problems answered by each, and one problem before and after a stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ladder.report import marks, words
from ladder.report.run import Figures, Run, Stage, number


@dataclass(frozen=True, slots=True)
class Answer:
    """What a stage wrote. verdict: right, partly, wrong, unknown, scored. said: the same in words.
    note: length and more."""

    stage: str
    verdict: str
    mark: str
    said: str
    pieces: marks.Pieces
    note: str
    long: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One problem before and after a stage."""

    prompt: str
    answer: str
    before: Answer
    after: Answer


@dataclass(frozen=True, slots=True)
class Problem:
    prompt: str
    answer: str
    answers: list[Answer]


@dataclass(frozen=True, slots=True)
class ProblemSet:
    name: str
    first: list[Problem] = field(default_factory=list)
    rest: list[Problem] = field(default_factory=list)


OPEN = 3
"""Problems of a set shown at once; the others can be unfolded."""
LONG = 400
"""Characters from which an answer gets a scroll bar of its own."""
MARKS = {"right": "✓", "wrong": "✗", "partly": "◐", "unknown": "?", "scored": "·"}


def problem_sets(run: Run) -> list[ProblemSet]:
    """Problems by set, each with what every stage's model wrote."""
    found: dict[str, dict[str, list[tuple[Stage, Figures]]]] = {}
    for stage in run.stages:
        for sample in stage.samples:
            key = str(sample.get("task", sample.get("prompt")))
            found.setdefault(str(sample.get("set", "")), {}).setdefault(key, []).append((stage, sample))
    names = [n for n in run.sets if n in found] + [n for n in found if n not in run.sets]
    out = []
    for name in names:
        classify = marks.classifier(run.recipe, name)
        all_of = [_problem(answers, classify, run.graded(name)) for answers in found[name].values()]
        out.append(ProblemSet(name, all_of[:OPEN], all_of[OPEN:]))
    return out


def _problem(answers: list[tuple[Stage, Figures]], classify: marks.Classify | None, graded: bool) -> Problem:
    first = answers[0][1]
    return Problem(
        prompt(first.get("prompt")),
        words.visible(first.get("answer", "")),
        [_answer(stage, sample, classify, graded) for stage, sample in answers],
    )


def prompt(value: object) -> str:
    """A prompt's text; of a conversation, every turn with its role."""
    if isinstance(value, list):
        turns = [m for m in value if isinstance(m, dict)]
        return "\n".join(words.visible(f"{m.get('role', '')}: {m.get('content', '')}") for m in turns)
    return words.visible(value if value is not None else "")


def _answer(stage: Stage, sample: Figures, classify: marks.Classify | None, graded: bool) -> Answer:
    reward, text = number(sample, "reward"), words.visible(sample.get("text") or "")
    verdict = "unknown" if reward is None else "right" if reward >= 1 else "wrong" if reward <= 0 else "partly"
    said = "not judged" if reward is None else verdict if reward in (0, 1) else f"reward {words.number(reward)}"
    if graded and reward is not None:
        verdict, said = _graded(sample), f"score {words.score(reward)}"
    length = number(sample, "length")
    notes = [said] if said not in ("right", "wrong") else []
    notes += [f"{words.number(length)} tokens"] if length is not None else []
    return Answer(
        stage.name,
        verdict,
        MARKS[verdict],
        said,
        marks.pieces(text, classify),
        " · ".join(notes),
        len(text) > LONG,
    )


def _graded(sample: Figures) -> str:
    """Right or wrong by the part of the score that says so; a score alone is neither."""
    right = number(sample.get("parts"), "right")
    return {1.0: "right", 0.0: "wrong"}.get(right, "scored") if right is not None else "scored"


def example(run: Run, stage: Stage, before: Stage) -> Example | None:
    """Of the problems that the stage turned from wrong to right, the one whose answer's length changed most; of scored
    ones, the one that gained most."""
    old = {(s.get("set"), s.get("task")): s for s in before.samples if s.get("task") is not None}
    pairs = [(old[k], s) for s in stage.samples if (k := (s.get("set"), s.get("task"))) in old]
    turned = [p for p in pairs if _turned(run, *p)]
    if not turned:
        return None
    a, b = max(turned, key=lambda p: (_gained(run, *p), _lengthened(*p)))
    graded = run.graded(str(b.get("set", "")))
    classify = marks.classifier(run.recipe, str(b.get("set", "")))
    return Example(
        prompt(b.get("prompt")),
        words.visible(b.get("answer", "")),
        _noted(_answer(before, a, classify, graded), graded),
        _noted(_answer(stage, b, classify, graded), graded),
    )


def _lengthened(a: Figures, b: Figures) -> float:
    return abs((number(a, "length") or 0) - (number(b, "length") or 0))


def _turned(run: Run, a: Figures, b: Figures) -> bool:
    """From wrong to right or, where answers have scores, better."""
    return _gained(run, a, b) > 0 or (number(a, "reward") == 0 and number(b, "reward") == 1)


def _gained(run: Run, a: Figures, b: Figures) -> float:
    """What an answer gained in score; nothing where answers are only right or wrong."""
    old, new = number(a, "reward"), number(b, "reward")
    return new - old if run.graded(str(b.get("set", ""))) and old is not None and new is not None else 0.0


def _noted(answer: Answer, graded: bool) -> Answer:
    """With its score beside the stage's name."""
    return replace(answer, stage=f"{answer.stage} · {answer.said}") if graded else answer
