"""What the stages of a run do, in sentences: their kind, what they read, what judges them, where they start."""

from __future__ import annotations

from typing import Any

from ladder.report import words
from ladder.report.marks import is_chain
from ladder.report.run import Run, Stage, number

KINDS = {
    "pretrain": "Reads a corpus and learns to predict the next token. Nothing is judged and nothing is rewarded.",
    "sft": "Learns by imitation: it is shown finished answers and learns to predict them token by token.",
    "evaluate": "Trains nothing: it shows where the model stands before anything is done to it.",
    "rl": (
        "Writes a group of answers to each problem and has every answer judged. What scored above its group's average "
        "becomes more likely, the rest less likely. No answer is ever shown to it."
    ),
    "ppo": (
        "Writes answers to problems and has each judged. A second model, the critic, learns to foresee that score from "
        "what has been written so far: what turned out better than foreseen becomes more likely, the rest less likely. "
        "No answer is ever shown to it."
    ),
    "annotate": (
        "Trains nothing. The model answers each problem several times, and simulated annotators say which of two "
        "answers they prefer."
    ),
    "reward_model": (
        "Learns to score answers: a scalar head on the model, trained so that of two answers the preferred one scores "
        "higher. It writes no answers itself."
    ),
    "rejection_sampling": (
        "Trains nothing. The model answers problems many times over, and only answers that pass every filter are kept: "
        "they are the documents of a later stage."
    ),
}


LOSSES = {
    "DPO": "Of two answers the preferred one becomes more likely, the other less, measured against the model it began "
    "as; how sure it already is decides how hard each pair pulls.",
    "IPO": "Of two answers the preferred one becomes more likely, up to a fixed margin over the model it began as.",
    "Hinge": "Of two answers the preferred one becomes more likely, until it leads by a margin over the model it began "
    "as.",
    "SimPO": "Of two answers the preferred one becomes more likely for each of its tokens, by a margin; there is no "
    "reference model.",
    "ORPO": "It imitates the preferred answer while its odds over the other one grow; there is no reference model.",
    "KTO": "Answers are taken one by one, liked or disliked: liked ones become more likely, disliked ones less, "
    "measured against the model it began as.",
}
"""What the losses of `prefer` do."""


def loss_name(stage: Stage) -> str:
    """The loss that a stage names: DPO where a stage of preferences names none."""
    names = names_in(stage.spec.get("loss"))
    return names[0] if names else "DPO" if stage.kind == "preference" else ""


def _kind(stage: Stage) -> str:
    """What stages of this kind do."""
    if stage.kind == "preference":
        return f"Learns from preferences with the loss {loss_name(stage)}. {LOSSES.get(loss_name(stage), '')}".strip()
    return KINDS.get(stage.kind, f"A stage of the kind “{stage.kind}”." if stage.kind else "")


def what(run: Run, stage: Stage) -> str:
    """What a stage of this kind does, what it reads, and what its reward looks at."""
    text = _kind(stage)
    like = next((s for s in run.stages if s.kind == stage.kind and _kind(s) == text), stage)
    if like is not stage and stage.kind in (*KINDS, "preference") and stage.kind != "evaluate":
        text = f"{'Works' if stage.is_data else 'Learns'} as {like.name} does."
    if not stage.is_data:
        text += _read(run, stage)
    more = {"annotate": _annotated, "reward_model": _climbed}.get(stage.kind, judged_by if stage.is_rewarded else None)
    if more is not None:
        text += f" {more(run, stage)}"
    return text.strip()


def _read(run: Run, stage: Stage) -> str:
    read = [s for s in run.stages if s.is_data and s.name in stage.reads]
    pairs = [s.name for s in read if s.kind == "annotate"]
    documents = [s.name for s in read if s.kind != "annotate"]
    text = f" Here: the documents kept by {words.listed(documents)}." if documents else ""
    return text + (f" Here: the pairs of {words.listed(pairs)}." if pairs else "")


def _annotated(run: Run, stage: Stage) -> str:
    """What annotators went by, how often they err, and what they left."""
    judge, error = words.listed(names_in(stage.spec.get("judge"))), number(stage.spec, "error")
    goes = [f"go by {judge}"] if judge else []
    goes += [f"give {words.share(error)} of their verdicts the wrong way round"] if error is not None else []
    text = f"They {' and '.join(goes)}. " if goes else ""
    pairs, equal, agreed = (stage.counts.get(k) for k in ("pairs", "equal", "agreement"))
    if pairs is not None:
        text += f"{words.number(pairs)} pairs are left"
        text += f", {words.number(equal)} that compared equal are not" if equal is not None else ""
        text += f"; {words.share(agreed)} of the verdicts are as the judge would have it" if agreed is not None else ""
        text += "."
    return text.strip()


def _climbed(run: Run, stage: Stage) -> str:
    """Which stages take its scores as their reward."""
    users = [s.name for s in run.stages if s.is_rewarded and stage.name in s.reads]
    name = loss_name(stage)
    text = f"Loss: {name}. " if name else ""
    return (text + (f"Its scores are the reward of {words.listed(users)}." if users else "")).strip()


def judged_by(run: Run, stage: Stage) -> str:
    """What the reward looks at."""
    spec = stage.spec.get("reward") or run.recipe.get("reward")
    if is_answer_only(run, stage):
        return "The reward is 1 for a right final answer, else 0: nothing about form, notation or length."
    scorers = proxies(run, stage)
    names = [f"the scores of {words.listed(scorers)}"] if scorers else names_in(spec)
    kl = number(stage.spec, "kl_coef")
    less = f", less {words.number(kl)} for each nat that an answer lies from the model it began as" if kl else ""
    text = f"Its reward: {words.listed(names)}{less}." if names else ""
    watched = watches(stage)
    if watched:
        text += f" Measured beside it and never trained on: {words.listed(watched)}."
    return text.strip()


def proxies(run: Run, stage: Stage) -> list[str]:
    """The reward models whose scores a stage is rewarded with."""
    return [s.name for s in run.stages if s.is_scorer and s.name in stage.reads and s.name != stage.parent]


def watches(stage: Stage) -> list[str]:
    """Names of the rewards that it only measures."""
    spec = stage.spec.get("watch")
    logged = {k.removeprefix("watched/"): None for m in stage.metrics[:1] for k in m if k.startswith("watched/")}
    return list(dict.fromkeys([*(map(str, spec) if isinstance(spec, dict) else ()), *logged]))


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


def names_in(spec: Any) -> list[str]:
    """The names in a reward's specification."""
    if isinstance(spec, str):
        return [spec]
    if isinstance(spec, list):
        return [n for one in spec for n in names_in(one)]
    if isinstance(spec, dict):
        return [str(spec["kind"])] if "kind" in spec else [str(k) for k in spec]
    return []


def origin(run: Run, stage: Stage) -> str:
    """What a stage starts from."""
    if stage.parent:
        return f"{'answers by' if stage.is_data else 'starts from'} {stage.parent}"
    start = run.before(stage)
    if start is not None:
        return f"{'answers by' if stage.is_data else 'starts from'} {start.name}"
    source = run.source or "the recipe's model"
    if stage.kind == "evaluate":
        return source
    if source.startswith("preset:"):
        return "starts from random weights"
    return f"starts from {source}"
