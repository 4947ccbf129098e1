"""Sentences about a run's stages: what their kind does, their input data, their reward and their starting model."""

from __future__ import annotations

from typing import Any

from ladder.report import words
from ladder.report.marks import is_chain
from ladder.report.run import RunFiles, Stage, number

KINDS = {
    "pretrain": "Pretraining: learns next-token prediction on a text corpus, without a reward.",
    "sft": "Supervised fine-tuning: learns to predict given answers token by token.",
    "evaluate": "Trains nothing: evaluates the model as it is.",
    "rl": (
        "The policy samples a group of answers to each problem, and the reward scores them. Answers above their "
        "group's mean become more likely, the others less likely. The policy sees no reference answer."
    ),
    "ppo": (
        "The policy samples answers to problems, and the reward scores them. A second model, the critic, predicts the "
        "reward from the tokens so far: tokens that lead to more than predicted become more likely, the others less "
        "likely. The policy sees no reference answer."
    ),
    "annotate": (
        "Trains nothing. The model samples several answers to each problem, and simulated annotators choose the "
        "preferred one of two answers."
    ),
    "reward_model": (
        "Trains a reward model: a scalar head scores answers so that the preferred answer of a pair scores higher. It "
        "writes no answers."
    ),
    "rejection_sampling": (
        "Trains nothing. The model samples many answers to each problem, and the answers that pass every filter become "
        "the training documents of a later stage."
    ),
}


LOSSES = {
    "DPO": "The preferred answer of a pair becomes more likely relative to the reference model, the other one less "
    "likely; pairs that the policy already ranks clearly weigh less.",
    "IPO": "The preferred answer of a pair becomes more likely relative to the reference model, up to a fixed margin.",
    "Hinge": "The preferred answer of a pair becomes more likely relative to the reference model, until it leads by a "
    "margin.",
    "SimPO": "The mean log-probability of the preferred answer's tokens rises over the other's by a margin, without a "
    "reference model.",
    "ORPO": "The preferred answer is imitated while its odds over the other one grow, without a reference model.",
    "KTO": "Single answers are labelled liked or disliked: liked ones become more likely relative to the reference "
    "model, disliked ones less likely.",
}
"""What the losses of `preference` stages do."""


def loss_name(stage: Stage) -> str:
    """The name of a stage's loss; `preference` stages use DPO by default."""
    names = names_in(stage.spec.get("loss"))
    return names[0] if names else "DPO" if stage.kind == "preference" else ""


def _kind_text(stage: Stage) -> str:
    """What stages of this kind do."""
    if stage.kind == "preference":
        return f"Trains on preferences with the loss {loss_name(stage)}. {LOSSES.get(loss_name(stage), '')}".strip()
    return KINDS.get(stage.kind, f"A stage of the kind “{stage.kind}”." if stage.kind else "")


def what(run: RunFiles, stage: Stage) -> str:
    """A paragraph about a stage: what its kind does, its input data and its reward."""
    text = _kind_text(stage)
    first = next((s for s in run.stages if s.kind == stage.kind and _kind_text(s) == text), stage)
    if first is not stage and stage.kind in (*KINDS, "preference") and stage.kind != "evaluate":
        text = f"{'Works' if stage.is_data else 'Trains'} like {first.name}."
    if not stage.is_data:
        text += _data_text(run, stage)
    details = {"annotate": _annotation_text, "reward_model": _reward_model_text}.get(
        stage.kind, judged_by if stage.is_rewarded else None
    )
    if details is not None:
        text += f" {details(run, stage)}"
    return text.strip()


def _data_text(run: RunFiles, stage: Stage) -> str:
    """The data stages that a stage trains on."""
    sources = [s for s in run.stages if s.is_data and s.name in stage.reads]
    pairs = [s.name for s in sources if s.kind == "annotate"]
    documents = [s.name for s in sources if s.kind != "annotate"]
    text = f" Data: the documents kept by {words.listed(documents)}." if documents else ""
    return text + (f" Data: the pairs of {words.listed(pairs)}." if pairs else "")


def _annotation_text(run: RunFiles, stage: Stage) -> str:
    """The annotators' judge and error rate, and the number of pairs they produced."""
    judge, error = words.listed(names_in(stage.spec.get("judge"))), number(stage.spec, "error")
    habits = [f"follow {judge}"] if judge else []
    habits += [f"reverse {words.share(error)} of their verdicts"] if error is not None else []
    text = f"The annotators {' and '.join(habits)}. " if habits else ""
    pairs, equal, agreement = (stage.counts.get(k) for k in ("pairs", "equal", "agreement"))
    if pairs is not None:
        text += f"{words.number(pairs)} pairs were kept"
        text += f", {words.number(equal)} ties were dropped" if equal is not None else ""
        text += f"; {words.share(agreement)} of the verdicts agree with the judge" if agreement is not None else ""
        text += "."
    return text.strip()


def _reward_model_text(run: RunFiles, stage: Stage) -> str:
    """A reward model's loss, and the stages that use its scores as their reward."""
    users = [s.name for s in run.stages if s.is_rewarded and stage.name in s.reads]
    name = loss_name(stage)
    text = f"Loss: {name}. " if name else ""
    return (text + (f"Its scores are the reward of {words.listed(users)}." if users else "")).strip()


def judged_by(run: RunFiles, stage: Stage) -> str:
    """The reward that a stage trains on, its KL penalty, and the rewards that it only watches."""
    spec = stage.spec.get("reward") or run.recipe.get("reward")
    if is_answer_only(run, stage):
        return "The reward is 1 for a right final answer, else 0; form, notation and length do not count."
    scorers = proxies(run, stage)
    names = [f"the scores of {words.listed(scorers)}"] if scorers else names_in(spec)
    kl_coef = number(stage.spec, "kl_coef")
    penalty = f", less {words.number(kl_coef)} for each nat of KL from the starting model" if kl_coef else ""
    text = f"Its reward: {words.listed(names)}{penalty}." if names else ""
    watched = watches(stage)
    if watched:
        text += f" Watched, not trained on: {words.listed(watched)}."
    return text.strip()


def proxies(run: RunFiles, stage: Stage) -> list[str]:
    """Names of the reward-model stages whose scores are a stage's reward."""
    return [s.name for s in run.stages if s.is_scorer and s.name in stage.reads and s.name != stage.parent]


def watches(stage: Stage) -> list[str]:
    """Names of the rewards that a stage logs without training on them."""
    spec = stage.spec.get("watch")
    logged = {k.removeprefix("watched/"): None for m in stage.metrics[:1] for k in m if k.startswith("watched/")}
    return list(dict.fromkeys([*(map(str, spec) if isinstance(spec, dict) else ()), *logged]))


def is_answer_only(run: RunFiles, stage: Stage) -> bool:
    """Whether the reward is the built-in world's, which judges the final answer only."""
    return is_chain(stage.spec.get("reward") or run.recipe.get("reward"))


def task_words(spec: Any) -> str:
    """A task's kind with its short options: `chain, steps 3–6`."""
    if isinstance(spec, str):
        return spec
    if not isinstance(spec, dict) or not spec:
        return ""
    if "kind" in spec:
        kind, options = str(spec["kind"]), {k: v for k, v in spec.items() if k != "kind"}
    else:
        kind, options = next(iter(spec.items()))
    texts = [f"{k} {_option_text(v)}" for k, v in options.items()] if isinstance(options, dict) else []
    return ", ".join([str(kind), *[text for text in texts if len(text) <= 30][:3]])


def splits(run: RunFiles) -> str:
    """The splits of the evaluation sets, where the recipe names them."""
    spec = run.recipe.get("eval")
    sets = spec.get("sets") if isinstance(spec, dict) else None
    set_specs = sets.values() if isinstance(sets, dict) else ()
    names = dict.fromkeys(str(s["split"]) for s in set_specs if isinstance(s, dict) and "split" in s)
    return f" (split: {words.listed(list(names))})" if names else ""


def _option_text(value: Any) -> str:
    is_range = isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) for v in value)
    return f"{value[0]}–{value[1]}" if is_range else str(value)


def names_in(spec: Any) -> list[str]:
    """The names in the specification of a reward or loss."""
    if isinstance(spec, str):
        return [spec]
    if isinstance(spec, list):
        return [n for item in spec for n in names_in(item)]
    if isinstance(spec, dict):
        return [str(spec["kind"])] if "kind" in spec else [str(k) for k in spec]
    return []


def origin(run: RunFiles, stage: Stage) -> str:
    """The model that a stage starts from or, for a data stage, that writes its answers."""
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
