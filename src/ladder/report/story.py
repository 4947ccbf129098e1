"""Sentences that summarise a run's figures. Each is computed, and omitted when one of its numbers is missing.

Losses are reported like gains.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from markupsafe import Markup

from ladder.report import words
from ladder.report.kinds import is_answer_only
from ladder.report.run import RunFiles, Stage, number

SHOWN_SETS = 3
"""Largest number of evaluation sets in the headline."""
LONGER = 1.25
"""Smallest ratio of answer lengths that gets a sentence."""
LOSS = 0.02
"""Smallest loss of accuracy, as a share of the set's largest value, that gets a sentence."""


# ------------------------------------------------------------ the headline


def headline(run: RunFiles) -> Markup:
    """One sentence about the whole run: its first model against its last, or its start against its branches."""
    models = run.models
    if not models and not measures(run):
        return Markup("This recipe has no evaluation sets; the curves below show the training metrics.")
    if not models:
        return Markup("No stage of this run has been evaluated yet.")
    if run.branches:
        return _branches_headline(run)
    first, last = models[0], models[-1]
    sets = [s for s in run.sets if accuracy(first, s) is not None and accuracy(last, s) is not None][:SHOWN_SETS]
    time = _total_time(run)
    if first is last or not sets:
        return _single_model_headline(run, last)
    parts = [
        Markup("from {}<b>{}</b> to <b>{}</b>{} on {} {}").format(
            "a score of " if run.graded(s) else "",
            say(run, s)(accuracy(first, s)),
            say(run, s)(accuracy(last, s)),
            "" if i else _right(run, s),
            s,
            "ones" if i else "problems",
        )
        for i, s in enumerate(sets)
    ]
    lengths = _length_change(run, first, last)
    return Markup("From {} to {}, the model went {}{}{}.").format(first.name, last.name, _joined(parts), lengths, time)


def say(run: RunFiles, name: str) -> Callable[[float | None], str]:
    """The format of a set's accuracy: a share or a score."""
    return words.score if run.graded(name) else words.share


def _right(run: RunFiles, name: str) -> str:
    return "" if run.graded(name) else " right"


def _total_time(run: RunFiles) -> Markup:
    return Markup(", in {} in total").format(words.duration(run.seconds)) if run.seconds is not None else Markup("")


def _branches_headline(run: RunFiles) -> Markup:
    """The headline of a run with branches: each final model against the model it started from."""
    branches = Markup("; ").join(_branch(run, start, ends) for start, ends in run.branches)
    return Markup("{}{}.").format(branches, _total_time(run))


def _branch(run: RunFiles, start: Stage | None, ends: list[Stage]) -> Markup:
    """The figures of final models that share a starting model."""
    names, single = words.listed([e.name for e in ends]), len(ends) == 1
    begin = f"{'starts' if single else 'each start'} from {start.name}" if start else "ended at"
    parts = []
    for name in run.sets[:SHOWN_SETS]:
        unit = Markup("score on {} problems").format(name) if run.graded(name) else Markup("right on {}").format(name)
        change = _change_to(start, ends, name, "accuracy", say(run, name))
        parts += [Markup("{} {}").format(unit, change)] if change else []
    lengths = _change_to(start, ends, run.sets[0], "length", words.tokens) if run.sets else Markup("")
    if lengths:
        set_note = f" ({run.sets[0]})" if len(run.sets) > 1 else ""
        parts.append(Markup("answers {} tokens{}").format(lengths, set_note))
    return Markup("{} {}: {}").format(names, begin, Markup("; ").join(parts)) if parts else Markup(names)


def _change_to(
    start: Stage | None, ends: list[Stage], name: str, key: str, text: Callable[[float | None], str]
) -> Markup:
    """A figure at the start and at every end: "from 0.72 to 1.49, 1.50 and 1.57". text: formats a value."""
    values = [number(e.figures.get(name), key) for e in ends]
    if all(v is None for v in values):
        return Markup("")
    end_values = _joined([Markup("<b>{}</b>").format(text(v)) for v in values])
    before = number(start.figures.get(name), key) if start else None
    return Markup("from <b>{}</b> to {}").format(text(before), end_values) if before is not None else end_values


def _single_model_headline(run: RunFiles, stage: Stage) -> Markup:
    """The headline when there is no second model to compare with."""
    sets = [s for s in run.sets if accuracy(stage, s) is not None][:SHOWN_SETS]
    if sets and run.graded(sets[0]):
        scores = [Markup("<b>{}</b> on {} problems").format(say(run, s)(accuracy(stage, s)), s) for s in sets]
        return Markup("After {}, the model scores {}.").format(stage.name, _joined(scores))
    parts = [Markup("<b>{}</b> of {} problems").format(words.share(accuracy(stage, s)), s) for s in sets]
    if not parts:
        return Markup("{} has run; its accuracy was not evaluated.").format(stage.name)
    return Markup("After {}, the model gets {} right.").format(stage.name, _joined(parts))


def _length_change(run: RunFiles, first: Stage, last: Stage) -> Markup:
    """The mean answer lengths of the first and last model on the first set."""
    a, b = ((number(m.figures.get(run.sets[0]), "length") if run.sets else None) for m in (first, last))
    if a is None or b is None or words.tokens(a) == words.tokens(b):
        return Markup("")
    return Markup(", and its answers from <b>{}</b> to <b>{}</b> tokens{}").format(
        words.tokens(a), words.tokens(b), f" ({run.sets[0]})" if len(run.sets) > 1 else ""
    )


def _joined(parts: list[Markup]) -> Markup:
    return parts[0] if len(parts) == 1 else Markup("{} and {}").format(Markup(", ").join(parts[:-1]), parts[-1])


def accuracy(stage: Stage, name: str) -> float | None:
    """A stage's accuracy (or mean score) on a set."""
    return number(stage.figures.get(name), "accuracy")


# ------------------------------------------------------------ the largest changes


def moments(run: RunFiles) -> list[Markup]:
    """Sentences about the largest gain and loss on every set and the largest changes of answer length and mixing."""
    sentences = [*(_gain(run, s) for s in run.sets), _length(run), _mixing(run), *(_loss(run, s) for s in run.sets)]
    return [sentence for sentence in sentences if sentence]


def _values(run: RunFiles, name: str, key: str) -> list[tuple[Stage, float]]:
    """(model, figure `key` on a set) of every model that has it, in the run's order."""
    return [(m, x) for m in run.models if (x := number(m.figures.get(name), key)) is not None]


def _changes(run: RunFiles, name: str, key: str) -> list[tuple[tuple[Stage, float], tuple[Stage, float]]]:
    """(before, after): each model with the one before it; with branches, with the model it started from."""
    values = _values(run, name, key)
    if not run.branches:
        return list(pairwise(values))
    by_name = {m.name: x for m, x in values}
    return [((s, by_name[s.name]), (m, x)) for m, x in values if (s := run.before(m)) and s.name in by_name]


def _gain(run: RunFiles, name: str) -> Markup:
    """The stage with the largest gain over the best model before it; with branches, over its starting model."""
    values, text = _values(run, name, "accuracy"), say(run, name)
    pairs = [(max(values[:i], key=lambda k: k[1]), values[i]) for i in range(1, len(values))]
    pairs = _changes(run, name, "accuracy") if run.branches else pairs
    if not pairs:
        return Markup("")
    (best, a), (stage, b) = max(pairs, key=lambda p: p[1][1] - p[0][1])
    if b <= a:
        sentence = Markup("On {} problems no stage exceeded {}<b>{}</b> ({}{}).")
        role = "its starting model " if run.branches else ""
        return sentence.format(name, role, best.name, text(a), _right(run, name))
    return Markup("Largest gain on {} problems: <b>{}</b>, from {} ({}) to {}.").format(
        name, stage.name, _with_unit(run, name, a), _after(best), text(b)
    )


def _after(stage: Stage) -> str:
    return stage.name if stage.kind == "evaluate" else f"after {stage.name}"


def _with_unit(run: RunFiles, name: str, value: float) -> str:
    """An accuracy with its unit: "23.1% right" or "a score of 0.72"."""
    return f"{'a score of ' if run.graded(name) else ''}{say(run, name)(value)}{_right(run, name)}"


def _loss(run: RunFiles, name: str) -> Markup:
    """The stage with the largest loss against the model it started from."""
    pairs = [(start, accuracy(start, name), m, accuracy(m, name)) for m in run.models if (start := run.before(m))]
    worse = [(s, a, m, b) for s, a, m, b in pairs if a is not None and b is not None and a - b >= LOSS * run.most(name)]
    if not worse:
        return Markup("")
    start, a, stage, b = max(worse, key=lambda w: w[1] - w[3])
    return Markup("Largest loss on {} problems: <b>{}</b>, from {} ({}) to {}.").format(
        name, stage.name, _with_unit(run, name, a), _after(start), say(run, name)(b)
    )


def _length(run: RunFiles) -> Markup:
    """The stage with the largest change of the mean answer length."""
    changes = _changes(run, run.sets[0], "length") if run.sets else []
    pairs = [p for p in changes if p[0][1] > 0 and p[1][1] > 0]
    if not pairs:
        return Markup("")
    (before, a), (stage, b) = max(pairs, key=lambda p: max(p[0][1] / p[1][1], p[1][1] / p[0][1]))
    if 1 / LONGER < b / a < LONGER:
        return Markup("")
    unrewarded = " Its reward does not depend on length." if stage.is_rewarded and is_answer_only(run, stage) else ""
    how = f"{b / a:.1f} times as long as" if b > a else f"{a / b:.1f} times shorter than"
    return Markup("Answers of <b>{}</b> are {} those of {}: {} tokens against {} on {} problems.{}").format(
        stage.name, how, before.name, words.tokens(b), words.tokens(a), run.sets[0], unrewarded
    )


def _mixing(run: RunFiles) -> Markup:
    """The stage with the largest change of the share of worked answers that mix notations."""
    if not run.sets:
        return Markup("")
    pairs = _changes(run, run.sets[0], "mixed")
    if not pairs:
        return Markup("")
    (before, a), (after, b) = max(pairs, key=lambda p: abs(p[0][1] - p[1][1]))
    return Markup("Worked answers that mix both notations: {} after {}, <b>{}</b> after {} ({}).").format(
        words.share(a), before.name, words.share(b), after.name, run.sets[0]
    )


def measures(run: RunFiles) -> bool:
    """Whether the recipe has evaluation sets; assumed if the run has no recipe with stages."""
    return "stages" not in run.recipe or bool(run.recipe.get("eval"))


def missing(run: RunFiles) -> list[str]:
    """A clause for every stage that has not run, is unfinished or was not evaluated."""
    clauses = []
    for stage in run.stages:
        if stage.state == "missing":
            clauses.append(f"{stage.name} has not run yet")
        elif stage.state == "unfinished":
            clauses.append(f"{stage.name} is unfinished: its last recorded step is {stage.steps}")
        elif measures(run) and not (stage.figures or stage.held_out or stage.kind in ("annotate", "best_of")):
            clauses.append(f"{stage.name} was not evaluated")
    return clauses
