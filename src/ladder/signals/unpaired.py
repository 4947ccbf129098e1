"""Answers that were liked or not as a signal (KTO): each gets "ref_logps", its "label" and "kl_z0".

z0 is the KL of the policy from the reference on answers to other prompts: each prompt x_i is joined with the answer
y_j of the next example whose prompt differs (the paper: the next one of the batch), fixed for the run, and

    z0 = max(0, mean over the step's i of sum over the tokens of y_j of (log policy - log reference)(y_j | x_i))

Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1. At the first step every log-ratio is 0: so is z0, and a loss's
`at_reference` is what it must be. What is joined is cut at the length of the longest example, so that it fits where
the examples do.
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
    """The signal over answers that were liked or not (`types.Signal`): samples with a bool in `meta["label"]`.

    policy: log-probabilities of the policy as it is now (`engine.forward`). reference: None only after `keep`. others:
    of each example, its prompt with an answer to another one. Raises UserError for a label that is not boolean, for
    labels that are all equal, and when all prompts are one.
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
        """Asks the reference once for all answers; see `Preferences.keep`."""
        assert self.reference is not None, "there is no reference to ask"
        self.examples.units = kept(self.examples.units, self.reference, directory, model)
        self.others = kept(self.others, self.reference, directory, model)
        self.reference = None

    def batches(self) -> Iterator[list[Unit]]:
        place = {id(unit): i for i, unit in enumerate(self.examples.units)}
        for units in self.examples.batches():
            yield self._filled(units, [self.others[place[id(unit)]] for unit in units])

    def observe(self, weights: Callable[[], Weights], version: int) -> None:
        """The policy is asked anew in every step; nothing has to be remembered."""

    def metrics(self) -> dict[str, float]:
        return self.examples.metrics() | self._metrics

    def state(self) -> dict[str, Any]:
        return self.examples.state() | {"labels": self._labels}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises UserError when the state is of other examples, other labels or another split of them into steps."""
        if state["labels"] != self._labels:
            raise UserError("the checkpoint was made with other labels", field="data", hint="start a new run")
        self.examples.restore(state)

    def _filled(self, units: list[Unit], others: list[Unit]) -> list[Unit]:
        if self.reference is not None:
            units, others = filled(units, self.reference), filled(others, self.reference)
        now = [columns["logps"] for columns in self.policy(others)]
        z0 = kl_z0(now, [s.cols[REF] for s in sequences(others)], [s.mask for s in sequences(others)])
        made: list[Unit] = []
        for s in sequences(units):
            known = {"label": _constant(s, float(s.meta["label"])), "kl_z0": _constant(s, z0)}
            made.append(replace(s, cols=s.cols | known))
        liked = sum(s.meta["label"] for s in sequences(units))
        self._metrics = {"liked": liked / len(made)}
        return made


def _constant(sample: Sample, value: float) -> Tensor:
    return torch.full((len(sample.tokens),), value)


def mismatched(samples: Sequence[Sample]) -> list[Sample]:
    """Each prompt with the answer of the next sample (after the last comes the first) that has another prompt.

    Tokens are joined as they are, and the answer's mask goes with it; the end of an answer that would make more than
    the longest sample is left out, but for its first trained token. Raises UserError when all prompts are equal.
    """
    prompts = [s.tokens[: prompt_length(s)].tolist() for s in samples]
    n, ahead = len(samples), _next_other(prompts)
    if ahead is None:
        raise UserError(
            "all prompts are the same, so there is no answer to another one", field="data", hint="give other prompts"
        )
    longest = max(len(s.tokens) for s in samples)
    return [_joined(samples[i], samples[j % n], longest) for i, j in enumerate(ahead)]


def _next_other(prompts: list[list[int]]) -> list[int] | None:
    """For each i the least j > i, counted round, with another prompt; None when there is none."""
    n = len(prompts)
    if all(p == prompts[0] for p in prompts):
        return None
    other = [0] * (2 * n)
    last = 2 * n - 1
    other[last] = 2 * n  # never asked for: it lies in the second round
    for i in reversed(range(last)):
        other[i] = i + 1 if prompts[(i + 1) % n] != prompts[i % n] else other[i + 1]
    return other[:n]


def _joined(asked: Sample, answered: Sample, longest: int) -> Sample:
    """The prompt of one, the answer of the other, of at most `longest` tokens."""
    n, m = prompt_length(asked), prompt_length(answered)
    mask = torch.cat([torch.zeros(n, dtype=torch.bool), answered.mask[m:]])
    end = max(longest, n + 1)  # the answer's first token from m on is a trained one
    return Sample(torch.cat([asked.tokens[:n], answered.tokens[m:]])[:end], mask[:end])


def kl_z0(policy: Sequence[Tensor], reference: Sequence[Tensor], masks: Sequence[Tensor]) -> float:
    """The mean over answers of their summed log-ratio, at least 0. Log-probabilities and masks are [T] each."""
    each = [float((p.double() - r.double())[m].sum()) for p, r, m in zip(policy, reference, masks, strict=True)]
    return max(0.0, sum(each) / len(each))


def check_labels(units: Sequence[Unit]) -> list[Sample]:
    """Raises UserError naming the first unit that is a pair or has no boolean label, and for labels all equal."""
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
            f"every label is {str(labels.pop()).lower()}: there is nothing to tell apart",
            field="data",
            hint="give answers of both kinds",
        )
    return samples
