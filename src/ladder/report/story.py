"""What a run's numbers say, in sentences. Every sentence is computed; a number that is missing leaves its sentence out.

Nothing is claimed that the figures do not hold: a fall is told like a rise.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from markupsafe import Markup

from ladder.report import words
from ladder.report.marks import is_chain
from ladder.report.run import Run, Stage, number

SHOWN_SETS = 3
"""Sets named in the headline."""
LONGER = 1.25
"""From this ratio of lengths on, a change of length is worth a sentence."""
LOSS = 0.02
"""From this fall of accuracy on, it is worth a sentence."""

KINDS = {
    "pretrain": "Reads a corpus and learns to predict the next token. Nothing is judged and nothing is rewarded.",
    "sft": "Learns by imitation: it is shown finished answers and learns to predict them token by token.",
    "measure": "Trains nothing: it shows where the model stands before anything is done to it.",
    "rl": (
        "Writes a group of answers to each problem and has every answer judged. What scored above its group's average "
        "becomes more likely, the rest less likely. No answer is ever shown to it."
    ),
    "harvest": (
        "Trains nothing. The model answers problems many times over, and only answers that pass every filter are kept: "
        "they are the documents of a later stage."
    ),
}


def what(run: Run, stage: Stage) -> str:
    """What a stage of this kind does, what it reads, and what its reward looks at."""
    text = KINDS.get(stage.kind, f"A stage of the kind “{stage.kind}”." if stage.kind else "")
    like = next((s for s in run.stages if s.kind == stage.kind), stage)
    if like is not stage and stage.kind in KINDS:
        text = f"{'Works' if stage.is_data else 'Learns'} as {like.name} does."
    read = [s.name for s in run.stages if s.is_data and s.name in _values(stage.spec)]
    if read and not stage.is_data:
        text += f" Here: the documents kept by {words.listed(read)}."
    if stage.kind == "rl":
        text += " " + judged_by(run, stage) if judged_by(run, stage) else ""
    return text.strip()


def judged_by(run: Run, stage: Stage) -> str:
    """What the reward looks at."""
    spec = stage.spec.get("reward") or run.recipe.get("reward")
    if is_answer_only(run, stage):
        return "The reward is 1 for a right final answer, else 0: nothing about form, notation or length."
    names = _names(spec)
    return f"Its reward: {words.listed(names)}." if names else ""


def is_answer_only(run: Run, stage: Stage) -> bool:
    return is_chain(stage.spec.get("reward") or run.recipe.get("reward"))


def task_words(spec: Any) -> str:
    """A task's kind and its short options: `chain, steps 3–6`."""
    if isinstance(spec, str):
        return spec
    if not isinstance(spec, dict) or not spec:
        return ""
    if "kind" in spec:
        kind, options = str(spec["kind"]), {k: v for k, v in spec.items() if k != "kind"}
    else:
        kind, options = next(iter(spec.items()))
    shown = [f"{k} {_option(v)}" for k, v in options.items()] if isinstance(options, dict) else []
    return ", ".join([str(kind), *[x for x in shown if len(x) <= 30][:3]])


def splits(run: Run) -> str:
    """Which splits the measured sets are from, as far as the recipe says."""
    spec = run.recipe.get("eval")
    sets = spec.get("sets") if isinstance(spec, dict) else None
    own = sets.values() if isinstance(sets, dict) else ()
    names = dict.fromkeys(str(s["split"]) for s in own if isinstance(s, dict) and "split" in s)
    return f" (split: {words.listed(list(names))})" if names else ""


def _option(value: Any) -> str:
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) for v in value)
    return f"{value[0]}–{value[1]}" if pair else str(value)


def _names(spec: Any) -> list[str]:
    """The names in a reward's specification."""
    if isinstance(spec, str):
        return [spec]
    if isinstance(spec, list):
        return [n for one in spec for n in _names(one)]
    if isinstance(spec, dict):
        return [str(spec["kind"])] if "kind" in spec else [str(k) for k in spec]
    return []


def _values(spec: Any) -> set[str]:
    """All strings in a specification."""
    if isinstance(spec, dict):
        return set().union(*map(_values, spec.values())) if spec else set()
    if isinstance(spec, list):
        return set().union(*map(_values, spec)) if spec else set()
    return {spec} if isinstance(spec, str) else set()


def origin(run: Run, stage: Stage) -> str:
    """What a stage starts from."""
    if stage.parent:
        return f"{'answers by' if stage.is_data else 'starts from'} {stage.parent}"
    source = run.source or "the recipe's model"
    if source.startswith("preset:"):
        return "starts from random weights"
    return f"starts from {source}"


# ------------------------------------------------------------ the headline


def headline(run: Run) -> Markup:
    """What happened, in one sentence."""
    models = run.models
    if not models:
        return Markup("No stage of this run has been measured yet.")
    first, last = models[0], models[-1]
    both = [s for s in run.sets if accuracy(first, s) is not None and accuracy(last, s) is not None][:SHOWN_SETS]
    took = Markup(", all in {}").format(words.duration(run.seconds)) if run.seconds is not None else Markup("")
    if first is last or not both:
        return _only(run, last)
    parts = [
        Markup("from <b>{}</b> to <b>{}</b>{} on {} {}").format(
            words.share(accuracy(first, s)), words.share(accuracy(last, s)), "" if i else " right", s, _ones(i)
        )
        for i, s in enumerate(both)
    ]
    grew = _lengths(run, first, last)
    return Markup("From {} to {}, the model went {}{}{}.").format(first.name, last.name, _joined(parts), grew, took)


def _only(run: Run, stage: Stage) -> Markup:
    """The sentence where nothing can be compared."""
    some = [s for s in run.sets if accuracy(stage, s) is not None][:SHOWN_SETS]
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


def _gain(run: Run, name: str) -> Markup:
    """The stage that rose most above everything before it."""
    known = _measured(run, name, "accuracy")
    pairs = [(max(known[:i], key=lambda k: k[1]), known[i]) for i in range(1, len(known))]
    if not pairs:
        return Markup("")
    (best, a), (stage, b) = max(pairs, key=lambda p: p[1][1] - p[0][1])
    if b <= a:
        text = Markup("On {} problems no stage came above <b>{}</b> ({} right).")
        return text.format(name, best.name, words.share(a))
    return Markup("Largest gain on {} problems: <b>{}</b>, from {} right (after {}) to {}.").format(
        name, stage.name, words.share(a), best.name, words.share(b)
    )


def _loss(run: Run, name: str) -> Markup:
    """The stage that fell most below the model it started from."""
    pairs = [(start, accuracy(start, name), m, accuracy(m, name)) for m in run.models if (start := run.before(m))]
    worse = [(s, a, m, b) for s, a, m, b in pairs if a is not None and b is not None and a - b >= LOSS]
    if not worse:
        return Markup("")
    start, a, stage, b = max(worse, key=lambda w: w[1] - w[3])
    return Markup("Lost on {} problems: <b>{}</b>, from {} right (after {}) to {}.").format(
        name, stage.name, words.share(a), start.name, words.share(b)
    )


def _length(run: Run) -> Markup:
    """The stage at which answers grew or shrank most."""
    known = [k for k in _measured(run, run.sets[0], "length") if k[1] > 0] if run.sets else []
    pairs = list(pairwise(known))
    if not pairs:
        return Markup("")
    (before, a), (stage, b) = max(pairs, key=lambda p: max(p[0][1] / p[1][1], p[1][1] / p[0][1]))
    if 1 / LONGER < b / a < LONGER:
        return Markup("")
    unasked = " Nothing in its reward asked for that." if stage.kind == "rl" and is_answer_only(run, stage) else ""
    how = f"{b / a:.1f} times as long as" if b > a else f"{a / b:.1f} times shorter than"
    return Markup("Answers of <b>{}</b> are {} those of {}: {} tokens against {} on {} problems.{}").format(
        stage.name, how, before.name, words.tokens(b), words.tokens(a), run.sets[0], unasked
    )


def _mixing(run: Run) -> Markup:
    """The stage at which mixing fell or rose most, against the model before it in the run."""
    if not run.sets:
        return Markup("")
    known = _measured(run, run.sets[0], "mixed")
    pairs = list(pairwise(known))
    if not pairs:
        return Markup("")
    (before, a), (after, b) = max(pairs, key=lambda p: abs(p[0][1] - p[1][1]))
    return Markup("Both notations in one worked answer: {} after {}, <b>{}</b> after {} ({}).").format(
        words.share(a), before.name, words.share(b), after.name, run.sets[0]
    )


def missing(run: Run) -> list[str]:
    """What is not there, in a sentence each."""
    out = []
    for stage in run.stages:
        if stage.state == "missing":
            out.append(f"{stage.name} has not run yet")
        elif stage.state == "unfinished":
            out.append(f"{stage.name} is unfinished: its last recorded step is {stage.steps}")
        elif not stage.figures:
            out.append(f"{stage.name} was not measured")
    return out
