"""Preferences as a signal: pairs, or answers that were liked or not, dealt to steps with the columns their losses read.

A pair is dealt as it is, with "ref_logps" of both sides when there is a reference (DPO, IPO, hinge). An answer on its
own gets "ref_logps", its "label" and "kl_z0" (KTO). The reference is a callable, `engine.freeze().forward` or
`engine.forward(reference=True)`; it is asked for each batch, or with `keep` once for all, before the first step, and
its numbers are kept in a file named by the hash of what they are of. Either way they are a function of the data alone,
so a run that is resumed sees the numbers of one that was not.

z0 is the KL of the policy from the reference on answers to other prompts: each prompt x_i is joined with the answer
y_j of the next example whose prompt differs (the paper: the next one of the batch), fixed for the run, and

    z0 = max(0, mean over the step's i of sum over the tokens of y_j of (log policy - log reference)(y_j | x_i))

Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1. At the first step every log-ratio is 0: so is z0, and a loss's
`at_reference` is what it must be.

Left out: preferences gathered while training (online DPO).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ladder.batch import prompt_length, sequences
from ladder.errors import UserError
from ladder.signals.examples import Examples, digest
from ladder.signals.rewards import Reference
from ladder.types import Pair, Sample, Unit, Weights

REF = "ref_logps"


@dataclass
class Preferences:
    """The signal over pairs (`types.Signal`). reference: None when the loss has none (SimPO, ORPO), or when the pairs
    have the column. Raises UserError for what is no pair, for equal sides and for prompts that differ."""

    examples: Examples
    reference: Reference | None = None

    def __post_init__(self) -> None:
        check_pairs(self.examples.units)
        if self.reference is not None:
            _check_unfilled(self.examples.units)

    def keep(self, directory: Path, model: str) -> None:
        """Asks the reference once for all pairs, or reads what it said before; it is not needed any more.

        model: what tells this reference from all others (the hash of its weights).
        """
        assert self.reference is not None, "there is no reference to ask"
        self.examples.units = kept(self.examples.units, self.reference, directory, model)
        self.reference = None

    def batches(self) -> Iterator[list[Unit]]:
        for units in self.examples.batches():
            yield filled(units, self.reference) if self.reference is not None else units

    def observe(self, weights: Callable[[], Weights], version: int) -> None:
        """Pairs do not depend on the policy."""

    def metrics(self) -> dict[str, float]:
        return self.examples.metrics()

    def state(self) -> dict[str, Any]:
        return self.examples.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.examples.restore(state)


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
        _check_unfilled(samples)
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
            raise UserError("the checkpoint was made with other labels", field="data", mend="start a new run")
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


# ---------------------------------------------------------------- the reference's column


def filled(units: Sequence[Unit], reference: Reference) -> list[Unit]:
    """The units with "ref_logps"; those given are left as they are."""
    return _with_ref(units, [columns["logps"] for columns in reference(units)])


def kept(units: Sequence[Unit], reference: Reference, directory: Path, model: str) -> list[Unit]:
    """`filled`, from a file when there is one of these tokens, masks and this model, and else into it.

    Raises UserError when the file is damaged.
    """
    path = directory / f"{digest(units, model)}.safetensors"
    masks = [s.mask for s in sequences(units)]
    if not path.exists():
        logps = [columns["logps"] for columns in reference(units)]
        _write(path, torch.cat([x[m] for x, m in zip(logps, masks, strict=True)]))
    flat = _read(path, sum(int(m.sum()) for m in masks))
    parts = flat.split([int(m.sum()) for m in masks])
    return _with_ref(units, [torch.zeros(len(m)).masked_scatter_(m, p) for m, p in zip(masks, parts, strict=True)])


def _write(path: Path, flat: Tensor) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({REF: flat}, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path, n: int) -> Tensor:
    mend = "delete it; it will be computed again"
    try:
        flat = load_file(path)[REF]
    except (SafetensorError, KeyError) as err:
        raise UserError(f"is damaged: {err}", file=path, mend=mend) from err
    if flat.shape != (n,):
        raise UserError(f"holds {flat.numel()} log-probabilities, not {n}", file=path, mend=mend)
    return flat


def _with_ref(units: Sequence[Unit], logps: Sequence[Tensor]) -> list[Unit]:
    said = iter(zip(sequences(units), logps, strict=True))

    def next_one() -> Sample:
        sample, ref = next(said)
        return replace(sample, cols=sample.cols | {REF: ref})

    made: list[Unit] = []
    for unit in units:
        made.append(replace(unit, chosen=next_one(), rejected=next_one()) if isinstance(unit, Pair) else next_one())
    assert next(said, None) is None
    return made


def _constant(sample: Sample, value: float) -> Tensor:
    return torch.full((len(sample.tokens),), value)


# ---------------------------------------------------------------- answers to other prompts


def mismatched(samples: Sequence[Sample]) -> list[Sample]:
    """Each prompt with the answer of the next sample (after the last comes the first) that has another prompt.

    Tokens are joined as they are, and the answer's mask goes with it. Raises UserError when all prompts are equal.
    """
    prompts = [s.tokens[: prompt_length(s)].tolist() for s in samples]
    n, ahead = len(samples), _next_other(prompts)
    if ahead is None:
        raise UserError(
            "all prompts are the same, so there is no answer to another one", field="data", mend="give other prompts"
        )
    return [_joined(samples[i], samples[j % n]) for i, j in enumerate(ahead)]


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


def _joined(asked: Sample, answered: Sample) -> Sample:
    """The prompt of one, the answer of the other."""
    n, m = prompt_length(asked), prompt_length(answered)
    mask = torch.cat([torch.zeros(n, dtype=torch.bool), answered.mask[m:]])
    return Sample(torch.cat([asked.tokens[:n], answered.tokens[m:]]), mask)


def kl_z0(policy: Sequence[Tensor], reference: Sequence[Tensor], masks: Sequence[Tensor]) -> float:
    """The mean over answers of their summed log-ratio, at least 0. Log-probabilities and masks are [T] each."""
    each = [float((p.double() - r.double())[m].sum()) for p, r, m in zip(policy, reference, masks, strict=True)]
    return max(0.0, sum(each) / len(each))


# ---------------------------------------------------------------- a sequence's end


def at_end(unit: Unit, filler: int = 0) -> Unit:
    """The unit asked for one number only, when its last token has been read: for a scalar head.

    A mask asks at the token *before* the one that it marks, so one more token is put behind, and marked. It is never
    read; which one it is (`filler`) does not matter.
    """
    if isinstance(unit, Pair):
        chosen, rejected = at_end(unit.chosen, filler), at_end(unit.rejected, filler)
        assert isinstance(chosen, Sample) and isinstance(rejected, Sample)
        return replace(unit, chosen=chosen, rejected=rejected)
    mask = torch.zeros(len(unit.tokens) + 1, dtype=torch.bool)
    mask[-1] = True
    return Sample(torch.cat([unit.tokens, torch.tensor([filler])]), mask, {}, unit.meta)


# ---------------------------------------------------------------- what cannot be trained on


def check_pairs(units: Sequence[Unit]) -> list[Pair]:
    """Raises UserError naming the first unit that is no pair, or whose sides are equal or answer different prompts."""
    pairs = []
    for i, unit in enumerate(units):
        if not isinstance(unit, Pair):
            raise UserError(f"{_where(unit, i)} is no pair", field="data", mend="give chosen and rejected")
        a, b = unit.chosen, unit.rejected
        if torch.equal(a.tokens, b.tokens):
            mend = "leave it out (cutting over-long answers can make them equal, too)"
            raise UserError(f"{_where(unit, i)}: chosen and rejected are the same", field="data", mend=mend)
        n = prompt_length(a)
        if prompt_length(b) != n or not torch.equal(a.tokens[:n], b.tokens[:n]):
            raise UserError(f"{_where(unit, i)}: chosen and rejected answer different prompts", field="data")
        pairs.append(unit)
    return pairs


def check_labels(units: Sequence[Unit]) -> list[Sample]:
    """Raises UserError naming the first unit that is a pair or has no boolean label, and for labels all equal."""
    samples = []
    for i, unit in enumerate(units):
        if not isinstance(unit, Sample):
            raise UserError(f"{_where(unit, i)} is a pair", field="data", mend="give prompt, completion and label")
        label = unit.meta.get("label")
        if not isinstance(label, bool):
            raise UserError(f"{_where(unit, i)}: the label must be true or false, not {label!r}", field="data")
        samples.append(unit)
    labels = {s.meta["label"] for s in samples}
    if len(labels) == 1:
        raise UserError(
            f"every label is {str(labels.pop()).lower()}: there is nothing to tell apart",
            field="data",
            mend="give answers of both kinds",
        )
    return samples


def _check_unfilled(units: Sequence[Unit]) -> None:
    for i, unit in enumerate(units):
        if any(REF in s.cols for s in sequences([unit])):
            raise UserError(
                f"{_where(unit, i)} has the column {REF!r} already, and a reference is given",
                field="reference",
                mend="take one of them out",
            )


def _where(unit: Unit, i: int) -> str:
    for meta in (unit.meta, *(s.meta for s in sequences([unit]))):
        if "origin" in meta:
            return str(meta["origin"])
    return f"example {i + 1}"
