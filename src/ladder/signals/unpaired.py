"""The signal of answers with a label, liked or disliked (KTO): each gets the columns "ref_logps", "label" and "kl_z0".

z0 estimates the KL of the policy from the reference on mismatched answers: each prompt x_i is joined with the answer
y_j of the next example whose prompt differs (the paper: the next one of the batch), fixed for the run, and

    z0 = max(0, mean over the step's i of sum over the tokens of y_j of (log policy - log reference)(y_j | x_i))

Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1. At the first step every log-ratio is 0, so z0 is 0 and the loss
must equal its `at_reference`. A mismatched sample is truncated to the length of the longest example, so that it fits
into the same memory as the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ladder.base.errors import UserError
from ladder.contract.training import Reference, Sample, Unit, Weights
from ladder.packing.pack import prompt_length, sequences
from ladder.signals.examples import Examples, digest
from ladder.signals.reference import REF, check_unfilled, filled, kept, place_of


@dataclass
class Unpaired:
    """The signal over labelled answers (`contract.training.Signal`): samples with a bool in `meta["label"]`.

    policy: computes the current policy's log-probabilities (`engine.forward`). reference: None only after `keep`.
    others: for each example its mismatched sample, the example's prompt with an answer to another prompt. Raises
    UserError for a label that is not boolean, for labels that are all equal, and if all prompts are equal.
    """

    examples: Examples
    policy: Reference
    reference: Reference | None
    others: Sequence[Unit] = field(init=False)
    _labels: str = field(init=False)
    _metrics: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        samples = check_labels(self.examples.units)
        check_unfilled(samples)
        self.others = mismatched(samples)
        self._labels = digest([], "".join(str(int(s.meta["label"])) for s in samples))

    def keep(self, directory: Path, model: str) -> None:
        """Computes the reference log-probabilities of all answers once; see `Preferences.keep`."""
        assert self.reference is not None, "there is no reference"
        self.examples.units = kept(self.examples.units, self.reference, directory, model)
        self.others = kept(self.others, self.reference, directory, model)
        self.reference = None

    def batches(self) -> Iterator[list[Unit]]:
        indices = {id(unit): i for i, unit in enumerate(self.examples.units)}
        for units in self.examples.batches():
            yield self._fill_columns(units, [self.others[indices[id(unit)]] for unit in units])

    def observe(self, weights: Callable[[], Weights], version: int) -> None:
        """Nothing to remember: `policy` computes the current log-probabilities in every step."""

    def metrics(self) -> dict[str, float]:
        return self.examples.metrics() | self._metrics

    def state(self) -> dict[str, Any]:
        return self.examples.state() | {"labels": self._labels}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises UserError if the state was saved with other examples, other labels or another split into steps."""
        if state["labels"] != self._labels:
            raise UserError("the checkpoint was made with other labels", field="data", hint="start a new run")
        self.examples.restore(state)

    def _fill_columns(self, units: list[Unit], others: list[Unit]) -> list[Unit]:
        """The units of a step with their three columns. others: their mismatched samples."""
        if self.reference is not None:
            units, others = filled(units, self.reference), filled(others, self.reference)
        policy_logps = [columns["logps"] for columns in self.policy(others)]
        z0 = kl_z0(policy_logps, [s.cols[REF] for s in sequences(others)], [s.mask for s in sequences(others)])
        filled_units: list[Unit] = []
        for s in sequences(units):
            columns = {"label": _constant(s, float(s.meta["label"])), "kl_z0": _constant(s, z0)}
            filled_units.append(replace(s, cols=s.cols | columns))
        num_liked = sum(s.meta["label"] for s in sequences(units))
        self._metrics = {"liked": num_liked / len(filled_units)}
        return filled_units


def _constant(sample: Sample, value: float) -> Tensor:
    """A column with one value at every token, float32 [T]."""
    return torch.full((len(sample.tokens),), value)


def mismatched(samples: Sequence[Sample]) -> list[Sample]:
    """The mismatched samples: each prompt with the answer of the next sample (cyclically) that has another prompt.

    Token ids are concatenated, and the answer keeps its mask. An answer is truncated so that the result is no longer
    than the longest sample, but its first trained token is always kept. Raises UserError if all prompts are equal.
    """
    prompts = [s.tokens[: prompt_length(s)].tolist() for s in samples]
    n, answer_indices = len(samples), _next_with_other_prompt(prompts)
    if answer_indices is None:
        raise UserError(
            "all prompts are the same, and KTO needs an answer to another prompt", field="data", hint="add prompts"
        )
    longest = max(len(s.tokens) for s in samples)
    return [_join(samples[i], samples[j % n], longest) for i, j in enumerate(answer_indices)]


def _next_with_other_prompt(prompts: list[list[int]]) -> list[int] | None:
    """For each i the least j > i (cyclically: modulo n) with another prompt; None if all prompts are equal."""
    n = len(prompts)
    if all(p == prompts[0] for p in prompts):
        return None
    following = [0] * (2 * n)
    last = 2 * n - 1
    following[last] = 2 * n  # never read: every i < n has its j before the end of the second round
    for i in reversed(range(last)):
        following[i] = i + 1 if prompts[(i + 1) % n] != prompts[i % n] else following[i + 1]
    return following[:n]


def _join(prompt_sample: Sample, answer_sample: Sample, longest: int) -> Sample:
    """The prompt of one sample and the answer of another, truncated to `longest` tokens."""
    n, m = prompt_length(prompt_sample), prompt_length(answer_sample)
    mask = torch.cat([torch.zeros(n, dtype=torch.bool), answer_sample.mask[m:]])
    end = max(longest, n + 1)  # token m, the first of the answer, is a trained one
    return Sample(torch.cat([prompt_sample.tokens[:n], answer_sample.tokens[m:]])[:end], mask[:end])


def kl_z0(policy: Sequence[Tensor], reference: Sequence[Tensor], masks: Sequence[Tensor]) -> float:
    """z0: the mean over answers of their summed log-ratio, at least 0. Log-probabilities and masks are [T] each."""
    log_ratios = [float((p.double() - r.double())[m].sum()) for p, r, m in zip(policy, reference, masks, strict=True)]
    return max(0.0, sum(log_ratios) / len(log_ratios))


def check_labels(units: Sequence[Unit]) -> list[Sample]:
    """The units as labelled samples. Raises UserError naming the first unit that is a pair or has no boolean label, and
    if all labels are equal."""
    samples = []
    for i, unit in enumerate(units):
        if not isinstance(unit, Sample):
            raise UserError(f"{place_of(unit, i)} is a pair", field="data", hint="give prompt, completion and label")
        label = unit.meta.get("label")
        if not isinstance(label, bool):
            raise UserError(f"{place_of(unit, i)}: the label must be true or false, not {label!r}", field="data")
        samples.append(unit)
    labels = {s.meta["label"] for s in samples}
    if len(labels) == 1:
        raise UserError(
            f"every label is {str(labels.pop()).lower()}: the loss needs liked and disliked answers",
            field="data",
            hint="give answers of both labels",
        )
    return samples
