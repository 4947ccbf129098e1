"""What a run's numbers say, in sentences. Every sentence is computed; a number that is missing leaves its sentence out.

Nothing is claimed that the figures do not hold: a fall is told like a rise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from markupsafe import Markup

from ladder.report import words
from ladder.report.kinds import is_answer_only
from ladder.report.run import Run, Stage, number

SHOWN_SETS = 3
"""Sets named in the headline."""
LONGER = 1.25
"""From this ratio of lengths on, a change of length is worth a sentence."""
LOSS = 0.02
"""From this fall of accuracy on, it is worth a sentence."""


# ------------------------------------------------------------ the headline


def headline(run: Run) -> Markup:
    """What happened, in one sentence."""
    models = run.models
    if not models and not measures(run):
        return Markup("This recipe measures no set: what there is, the curves below say.")
    if not models:
        return Markup("No stage of this run has been measured yet.")
    if run.branches:
        return _branches(run)
    first, last = models[0], models[-1]
    both = [s for s in run.sets if accuracy(first, s) is not None and accuracy(last, s) is not None][:SHOWN_SETS]
    took = Markup(", all in {}").format(words.duration(run.seconds)) if run.seconds is not None else Markup("")
    if first is last or not both:
        return _only(run, last)
    parts = [
        Markup("from {}<b>{}</b> to <b>{}</b>{} on {} {}").format(
            "a score of " if run.graded(s) else "",
            say(run, s)(accuracy(first, s)),
            say(run, s)(accuracy(last, s)),
            "" if i else _right(run, s),
            s,
            _ones(i),
        )
        for i, s in enumerate(both)
    ]
    grew = _lengths(run, first, last)
    return Markup("From {} to {}, the model went {}{}{}.").format(first.name, last.name, _joined(parts), grew, took)


def say(run: Run, name: str) -> Callable[[float | None], str]:
    """How a set's figures are written: as shares, or as scores."""
    return words.score if run.graded(name) else words.share


def _right(run: Run, name: str) -> str:
    return "" if run.graded(name) else " right"


def _branches(run: Run) -> Markup:
    """The headline where stages are alternatives: each against where it started."""
    took = Markup(", all in {}").format(words.duration(run.seconds)) if run.seconds is not None else Markup("")
    return Markup("{}{}.").format(Markup("; ").join(_branch(run, start, ends) for start, ends in run.branches), took)


def _branch(run: Run, start: Stage | None, ends: list[Stage]) -> Markup:
    """What became of the models that share a start."""
    names, alone = words.listed([e.name for e in ends]), len(ends) == 1
    begins = f"{'starts' if alone else 'each start'} from {start.name}" if start else "ended at"
    parts = []
    for name in run.sets[:SHOWN_SETS]:
        unit = Markup("score on {} problems").format(name) if run.graded(name) else Markup("right on {}").format(name)
        way = _way(start, ends, name, "accuracy", say(run, name))
        parts += [Markup("{} {}").format(unit, way)] if way else []
    lengths = _way(start, ends, run.sets[0], "length", words.tokens) if run.sets else Markup("")
    if lengths:
        more = f" ({run.sets[0]})" if len(run.sets) > 1 else ""
        parts.append(Markup("answers {} tokens{}").format(lengths, more))
    return Markup("{} {}: {}").format(names, begins, Markup("; ").join(parts)) if parts else Markup(names)


def _way(start: Stage | None, ends: list[Stage], name: str, key: str, text: Callable[[float | None], str]) -> Markup:
    """from 0.72 to 1.49, 1.50 and 1.57"""
    values = [number(e.figures.get(name), key) for e in ends]
    if all(v is None for v in values):
        return Markup("")
    reached = _joined([Markup("<b>{}</b>").format(text(v)) for v in values])
    before = number(start.figures.get(name), key) if start else None
    return Markup("from <b>{}</b> to {}").format(text(before), reached) if before is not None else reached


def _only(run: Run, stage: Stage) -> Markup:
    """The sentence where nothing can be compared."""
    some = [s for s in run.sets if accuracy(stage, s) is not None][:SHOWN_SETS]
    if some and run.graded(some[0]):
        scores = [Markup("<b>{}</b> on {} problems").format(say(run, s)(accuracy(stage, s)), s) for s in some]
        return Markup("After {}, the model scores {}.").format(stage.name, _joined(scores))
    parts = [Markup("<b>{}</b> of {} problems").format(words.share(accuracy(stage, s)), s) for s in some]
    if not parts:
        return Markup("{} has run; its accuracy was not measured.").format(stage.name)
    return Markup("After {}, the model gets {} right.").format(stage.name, _joined(parts))


def _ones(i: int) -> str:
    return "ones" if i else "problems"


def _lengths(run: Run, first: Stage, last: Stage) -> Markup:
    """How long answers were and are, on the first set."""
    a, b = ((number(m.figures.get(run.sets[0]), "length") if run.sets else None) for m in (first, last))
    if a is None or b is None or words.tokens(a) == words.tokens(b):
        return Markup("")
    return Markup(", and its answers from <b>{}</b> to <b>{}</b> tokens{}").format(
        words.tokens(a), words.tokens(b), f" ({run.sets[0]})" if len(run.sets) > 1 else ""
    )


def _joined(parts: list[Markup]) -> Markup:
    return parts[0] if len(parts) == 1 else Markup("{} and {}").format(Markup(", ").join(parts[:-1]), parts[-1])


def accuracy(stage: Stage, name: str) -> float | None:
    return number(stage.figures.get(name), "accuracy")


# ------------------------------------------------------------ what stands out


def moments(run: Run) -> list[Markup]:
    """The few changes worth a sentence: the largest gain, a change of length, a change of mixing, the largest loss."""
    found = [*(_gain(run, s) for s in run.sets), _length(run), _mixing(run), *(_loss(run, s) for s in run.sets)]
    return [m for m in found if m]


def _measured(run: Run, name: str, key: str) -> list[tuple[Stage, float]]:
    """Every model with that figure, in the run's order."""
    return [(m, x) for m in run.models if (x := number(m.figures.get(name), key)) is not None]


def _changes(run: Run, name: str, key: str) -> list[tuple[tuple[Stage, float], tuple[Stage, float]]]:
    """(before, after): each model with the one before it; with branches, with the one that it started from."""
    known = _measured(run, name, key)
    if not run.branches:
        return list(pairwise(known))
    values = {m.name: x for m, x in known}
    return [((s, values[s.name]), (m, x)) for m, x in known if (s := run.before(m)) and s.name in values]


def _gain(run: Run, name: str) -> Markup:
    """The stage that rose most above everything before it; with branches, above where it started."""
    known, text = _measured(run, name, "accuracy"), say(run, name)
    pairs = [(max(known[:i], key=lambda k: k[1]), known[i]) for i in range(1, len(known))]
    pairs = _changes(run, name, "accuracy") if run.branches else pairs
    if not pairs:
        return Markup("")
    (best, a), (stage, b) = max(pairs, key=lambda p: p[1][1] - p[0][1])
    if b <= a:
        none = Markup("On {} problems no stage came above {}<b>{}</b> ({}{}).")
        where = "where it started: " if run.branches else ""
        return none.format(name, where, best.name, text(a), _right(run, name))
    return Markup("Largest gain on {} problems: <b>{}</b>, from {} ({}) to {}.").format(
        name, stage.name, _at(run, name, a), _after(best), text(b)
    )


def _after(stage: Stage) -> str:
    return stage.name if stage.kind == "evaluate" else f"after {stage.name}"


def _at(run: Run, name: str, value: float) -> str:
    """23.1% right; a score of 0.72"""
    return f"{'a score of ' if run.graded(name) else ''}{say(run, name)(value)}{_right(run, name)}"


def _loss(run: Run, name: str) -> Markup:
    """The stage that fell most below the model it started from."""
    pairs = [(start, accuracy(start, name), m, accuracy(m, name)) for m in run.models if (start := run.before(m))]
    worse = [(s, a, m, b) for s, a, m, b in pairs if a is not None and b is not None and a - b >= LOSS * run.most(name)]
    if not worse:
        return Markup("")
    start, a, stage, b = max(worse, key=lambda w: w[1] - w[3])
    return Markup("Lost on {} problems: <b>{}</b>, from {} ({}) to {}.").format(
        name, stage.name, _at(run, name, a), _after(start), say(run, name)(b)
    )


def _length(run: Run) -> Markup:
    """The stage at which answers grew or shrank most."""
    found = _changes(run, run.sets[0], "length") if run.sets else []
    pairs = [p for p in found if p[0][1] > 0 and p[1][1] > 0]
    if not pairs:
        return Markup("")
    (before, a), (stage, b) = max(pairs, key=lambda p: max(p[0][1] / p[1][1], p[1][1] / p[0][1]))
    if 1 / LONGER < b / a < LONGER:
        return Markup("")
    unasked = " Nothing in its reward asked for that." if stage.is_rewarded and is_answer_only(run, stage) else ""
    how = f"{b / a:.1f} times as long as" if b > a else f"{a / b:.1f} times shorter than"
    return Markup("Answers of <b>{}</b> are {} those of {}: {} tokens against {} on {} problems.{}").format(
        stage.name, how, before.name, words.tokens(b), words.tokens(a), run.sets[0], unasked
    )


def _mixing(run: Run) -> Markup:
    """The stage at which mixing fell or rose most, against the model before it in the run."""
    if not run.sets:
        return Markup("")
    pairs = _changes(run, run.sets[0], "mixed")
    if not pairs:
        return Markup("")
    (before, a), (after, b) = max(pairs, key=lambda p: abs(p[0][1] - p[1][1]))
    return Markup("Both notations in one worked answer: {} after {}, <b>{}</b> after {} ({}).").format(
        words.share(a), before.name, words.share(b), after.name, run.sets[0]
    )


def measures(run: Run) -> bool:
    """Whether the recipe asks for any set to be measured; a run without its recipe is believed to."""
    return "stages" not in run.recipe or bool(run.recipe.get("eval"))


def missing(run: Run) -> list[str]:
    """What is not there, in a sentence each."""
    out = []
    for stage in run.stages:
        if stage.state == "missing":
            out.append(f"{stage.name} has not run yet")
        elif stage.state == "unfinished":
            out.append(f"{stage.name} is unfinished: its last recorded step is {stage.steps}")
        elif measures(run) and not (stage.figures or stage.held_out or stage.kind in ("annotate", "best_of")):
            out.append(f"{stage.name} was not measured")
    return out
