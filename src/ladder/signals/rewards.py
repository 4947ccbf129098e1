"""Rewards as a signal: draw a group of rollouts for each prompt, judge them, and let a credit fill the columns.

    tasks -> groups of rollouts (collect) -> one outcome each (reward) -> trained samples (credit)

Which technique it is, the credit (`ladder.credit`), the loss and the columns decide. The log-probabilities that tokens
were drawn with *are* `old_logps`; nothing is recomputed. An answer whose reward failed is trained nowhere, and counted.

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

    collect: draws groups from the policy. credit: turns judged groups into trained samples. reference: fills
    `ref_logps`; None computes none. max_failed: the share of answers that may fail to be judged before the run
    stops. stats: further figures of a step's rollouts. load: hands new weights to the sampler.
    rescore: the engine's log-probabilities, for a sampler that computes otherwise; None trusts the sampler's. probe:
    the same, asked once, at the first batch of a process that is not empty, where the loss has no ratio to show that
    sampler and engine differ.
    on_rollouts: told of every judged step, for logs; the figures it returns join the step's.
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
            self.load(lambda: iter(()), self.version)  # the weights are restored where they lie

    # ------------------------------------------------------------ one step

    def _batch(self) -> list[Unit]:
        begun = time.perf_counter()
        groups = self.collect(self.prompts(self.step), step=self.step, version=self.version)
        drawn = time.perf_counter()
        judged = judge(self.reward, groups)
        scored = time.perf_counter()
        seen = self.on_rollouts(self.step, groups, judged) if self.on_rollouts is not None else {}
        check_judged(judged, self.max_failed, f"step {self.step}")
        ref = self._reference_logps(groups)
        units, own = self.credit(groups, judged, ref)
        own |= rescored(units, self.rescore) if self.rescore is not None else {}
        if self.probe is not None and units:
            own |= {f"probe/{name}": x for name, x in apart(units, self.probe(units)).items()}
            self.probe = None
        self._metrics = self._figures(groups, judged, ref) | own
        self._metrics |= seen | {"seconds/rollout": drawn - begun, "seconds/reward": scored - drawn}
        self.step += 1
        return units

    def _reference_logps(self, groups: Groups) -> list[Tensor] | None:
        """`ref_logps` of every answer, in order; None without a reference."""
        if self.reference is None:
            return None
        samples = [to_sample(r) for group in groups for r in group]
        drawn: list[Unit] = [s for s in samples if bool(s.mask.any())]
        found = iter(self.reference(drawn))
        return [next(found)["logps"] if bool(s.mask.any()) else torch.zeros(len(s.mask)) for s in samples]

    def _figures(self, groups: Groups, judged: Judged, ref: list[Tensor] | None) -> dict[str, float]:
        """What can be said of a step's answers whatever is trained on them."""
        rollouts = [r for group in groups for r in group]
        outcomes = [o for group in judged for o in group]
        good = [o for o in outcomes if isinstance(o, Score)]
        lengths = np.array([r.length for r in rollouts], np.float64)
        values = np.array([o.value for o in good], np.float64)
        figures = {
            "length/mean": float(lengths.mean()),
            "length/max": float(lengths.max()),
            "truncated": float(np.mean([r.stop == "length" for r in rollouts])),
            "invalid": float(np.mean([isinstance(o, Invalid) for o in outcomes])),
            "infra_errors": float(np.mean([isinstance(o, InfraError) for o in outcomes])),
            "rollouts": float(len(rollouts)),
        }
        if good:  # the mean of nothing is no figure
            figures |= {"reward/mean": float(values.mean()), "reward/std": float(values.std())}
        for name in sorted({n for o in good for n in o.parts}):
            figures[f"reward/{name}"] = float(np.mean([o.parts[name] for o in good if name in o.parts]))
        if ref is not None:
            figures["kl/response"] = float(np.mean([answer_kl(r, at) for r, at in zip(rollouts, ref, strict=True)]))
        if self.stats is not None:
            figures |= self.stats(rollouts)
        return figures


def rescored(units: Sequence[Unit], rescore: Reference) -> dict[str, float]:
    """Writes the engine's log-probabilities over `old_logps`; how far the sampler's were from them, a token."""
    columns = rescore(units)
    for unit, column in zip(units, columns, strict=True):
        assert isinstance(unit, Sample)
        unit.cols["old_logps"] = column["logps"]
    return {f"mismatch/{name}": value for name, value in apart(units, columns).items()}


def apart(units: Sequence[Unit], columns: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the engine's (`columns`), in nats a trained token: mean and
    largest distance, and k3 of KL(sampler || engine). Nothing where nothing is trained."""
    differences = []
    for unit, column in zip(units, columns, strict=True):
        assert isinstance(unit, Sample)
        differences.append((column["logps"] - unit.cols["sampler_logps"])[unit.mask])
    if not differences:
        return {}
    d = torch.cat(differences)
    figures = {"mean": d.abs().mean(), "max": d.abs().max(), "kl": (d.exp() - 1 - d).mean()}
    return {name: float(value) for name, value in figures.items()}
