"""The signal of rewards: sample a group of rollouts for each prompt, judge them, and let a credit fill the columns.

    tasks -> groups of rollouts (collect) -> one outcome each (reward) -> trained samples (credit)

The credit (`ladder.credit`) and the loss decide which technique it is. The log-probabilities that the tokens were
sampled with *are* `old_logps`; nothing is recomputed. An answer whose reward failed is not trained on, and is counted.

Left out: credit within an answer of several turns (one outcome per whole answer).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.contract.rollouts import (
    Collect,
    Groups,
    InfraError,
    Invalid,
    Judged,
    Reward,
    Rollout,
    Score,
    Task,
)
from ladder.contract.training import Reference, Sample, Unit, Weights
from ladder.credit.base import Credit, answer_kl, to_sample
from ladder.credit.group import GroupCredit
from ladder.rewards.judge import check_judged, judge


@dataclass(slots=True)
class Rewards:
    """The signal (`contract.training.Signal`).

    prompts: the tasks of a step. collect: samples groups from the behaviour policy. credit: turns judged groups into
    trained samples. reference: computes `ref_logps`; None computes none. max_failed: the share of answers whose reward
    may fail before the run stops. stats: further figures of a step's rollouts. load: hands new weights to the sampler.
    rescore: computes the engine's log-probabilities, for a sampler that computes differently; None uses the sampler's.
    probe: the same, called once, for the first batch of a process that is not empty: it shows a difference between
    sampler and engine if the loss has no ratio to show it. on_rollouts: called after every judged step, for logs; the
    figures that it returns are added to the step's.
    """

    prompts: Callable[[int], Sequence[Task]]
    collect: Collect
    reward: Reward
    credit: Credit = field(default_factory=GroupCredit)
    reference: Reference | None = None
    max_failed: float = 0.1
    rescore: Reference | None = None
    probe: Reference | None = None
    on_rollouts: Callable[[int, Groups, Judged], dict[str, float]] | None = None
    stats: Callable[[Sequence[Rollout]], dict[str, float]] | None = None
    load: Callable[[Callable[[], Weights], int], None] | None = None
    step: int = 0
    version: int = 0
    _metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.credit.needs_reference and self.reference is None:
            raise ValueError("kl_coef is set but there is no reference to measure the KL from")

    def batches(self) -> Iterator[list[Unit]]:
        while True:
            yield self._batch()

    def observe(self, weights: Callable[[], Weights], version: int) -> None:
        self.version = version
        if self.load is not None:
            self.load(weights, version)

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "version": self.version, "credit": self.credit.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.version = int(state["step"]), int(state["version"])
        self.credit.restore(state["credit"])
        if self.load is not None:
            self.load(lambda: iter(()), self.version)  # only the version: the engine restored the weights in place

    # ------------------------------------------------------------ one step

    def _batch(self) -> list[Unit]:
        """Samples, judges and assigns credit; returns the trained samples of one step."""
        start = time.perf_counter()
        groups = self.collect(self.prompts(self.step), step=self.step, version=self.version)
        sampled_at = time.perf_counter()
        judged = judge(self.reward, groups)
        judged_at = time.perf_counter()
        logged = self.on_rollouts(self.step, groups, judged) if self.on_rollouts is not None else {}
        check_judged(judged, self.max_failed, f"step {self.step}")
        ref_logps = self._reference_logps(groups)
        units, credit_figures = self.credit(groups, judged, ref_logps)
        credit_figures |= rescored(units, self.rescore) if self.rescore is not None else {}
        if self.probe is not None and units:
            credit_figures |= {f"probe/{name}": x for name, x in apart(units, self.probe(units)).items()}
            self.probe = None
        self._metrics = self._figures(groups, judged, ref_logps) | credit_figures
        self._metrics |= logged | {"seconds/rollout": sampled_at - start, "seconds/reward": judged_at - sampled_at}
        self.step += 1
        return units

    def _reference_logps(self, groups: Groups) -> list[Tensor] | None:
        """`ref_logps` of every rollout, in order, [T] each (zeros if nothing was sampled); None without a reference."""
        if self.reference is None:
            return None
        samples = [to_sample(r) for group in groups for r in group]
        nonempty: list[Unit] = [s for s in samples if bool(s.mask.any())]
        columns = iter(self.reference(nonempty))
        return [next(columns)["logps"] if bool(s.mask.any()) else torch.zeros(len(s.mask)) for s in samples]

    def _figures(self, groups: Groups, judged: Judged, ref_logps: list[Tensor] | None) -> dict[str, float]:
        """The figures of a step's rollouts that do not depend on the credit."""
        rollouts = [r for group in groups for r in group]
        outcomes = [o for group in judged for o in group]
        scores = [o for o in outcomes if isinstance(o, Score)]
        lengths = np.array([r.length for r in rollouts], np.float64)
        values = np.array([o.value for o in scores], np.float64)
        figures = {
            "length/mean": float(lengths.mean()),
            "length/max": float(lengths.max()),
            "truncated": float(np.mean([r.stop == "length" for r in rollouts])),
            "invalid": float(np.mean([isinstance(o, Invalid) for o in outcomes])),
            "infra_errors": float(np.mean([isinstance(o, InfraError) for o in outcomes])),
            "rollouts": float(len(rollouts)),
        }
        if scores:  # without a score there is no mean
            figures |= {"reward/mean": float(values.mean()), "reward/std": float(values.std())}
        for name in sorted({n for o in scores for n in o.parts}):
            figures[f"reward/{name}"] = float(np.mean([o.parts[name] for o in scores if name in o.parts]))
        if ref_logps is not None:
            kls = [answer_kl(r, ref_logps_T) for r, ref_logps_T in zip(rollouts, ref_logps, strict=True)]
            figures["kl/response"] = float(np.mean(kls))
        if self.stats is not None:
            figures |= self.stats(rollouts)
        return figures


def rescored(units: Sequence[Unit], rescore: Reference) -> dict[str, float]:
    """Overwrites `old_logps` with the engine's log-probabilities; returns the figures of the sampler's mismatch (see
    `apart`)."""
    columns = rescore(units)
    for unit, column in zip(units, columns, strict=True):
        assert isinstance(unit, Sample)
        unit.cols["old_logps"] = column["logps"]
    return {f"mismatch/{name}": value for name, value in apart(units, columns).items()}


def apart(units: Sequence[Unit], columns: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """The mismatch of the sampler's log-probabilities and the engine's (`columns`), in nats per trained token: mean and
    largest absolute difference, and the k3 estimate of KL(sampler || engine). No figures without units."""
    differences = []
    for unit, column in zip(units, columns, strict=True):
        assert isinstance(unit, Sample)
        differences.append((column["logps"] - unit.cols["sampler_logps"])[unit.mask])
    if not differences:
        return {}
    difference = torch.cat(differences)
    k3 = (difference.exp() - 1 - difference).mean()
    figures = {"mean": difference.abs().mean(), "max": difference.abs().max(), "kl": k3}
    return {name: float(value) for name, value in figures.items()}
