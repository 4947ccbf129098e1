"""Rewards as a signal: sample a group of answers to each prompt, judge them, turn rewards into advantages.

Covers GRPO, RLOO, Dr. GRPO, REINFORCE++ and their kin: which one it is, the advantage, the loss and the columns
decide. The log-probabilities that tokens were drawn with *are* `old_logps`; nothing is recomputed. An answer
whose reward failed leaves both the loss and its group's baseline, and is counted. A group whose answers all got
the same reward has nothing to say and is not trained.

Left out: multi-turn credit (one outcome per whole answer) and value functions (GAE fills the same columns).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ladder import rng
from ladder.kl import kl_in_reward
from ladder.signals.advantages import Kind, advantages
from ladder.types import InfraError, Invalid, Outcome, PerAnswer, Reward, Rollout, Sample, Score, Task, Unit, Weights

Groups = list[list[Rollout]]
Judged = list[list[Outcome]]


class Collect(Protocol):
    """Samples the answers to some tasks: one group per task."""

    def __call__(self, tasks: Sequence[Task], *, step: int, version: int) -> Groups: ...


class Reference(Protocol):
    """Columns of a frozen model: `engine.forward` of a snapshot, or with the adapter switched off."""

    def __call__(self, units: Sequence[Unit]) -> list[dict[str, Tensor]]: ...


class RewardFailure(RuntimeError):
    """Too many answers could not be judged for the rest to mean anything."""


@dataclass(slots=True)
class Prompts:
    """`per_step` tasks a step, each task once per epoch, in an order fixed by the seed."""

    tasks: Sequence[Task]
    per_step: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.per_step <= len(self.tasks):
            raise ValueError(f"{self.per_step} prompts a step out of {len(self.tasks)} tasks")

    def __call__(self, step: int) -> list[Task]:
        """The tasks of a step (counted from 0)."""
        n = len(self.tasks)
        orders: dict[int, np.ndarray] = {}
        picked: list[Task] = []
        for at in range(step * self.per_step, (step + 1) * self.per_step):
            epoch = at // n
            if epoch not in orders:
                orders[epoch] = rng.np_rng(self.seed, "prompts", epoch).permutation(n)
            picked.append(self.tasks[orders[epoch][at % n]])
        return picked


def itself(version: int) -> int:
    return version


@dataclass(slots=True)
class Rewards:
    """The signal (`types.Signal`).

    collect: draws groups from the policy. advantage: how rewards become advantages. kl_coef: weight of the k1
    penalty (log-probability ratio to `reference`) taken off the reward, summed over the answer. reference: fills
    `ref_logps`; None computes none. max_failed: the share of answers that may fail to be judged before the run
    stops. drop_silent: whether to leave out groups without any advantage (False when the loss holds a KL term that
    they should feel). skip_truncated: answers cut off at the length limit are not trained (they stay in the baseline).
    stats: further figures of a step's rollouts. load: hands new weights to the sampler. drawn_by: the version
    that draws when the policy is of a version.
    rescore: the engine's log-probabilities, for a sampler that computes otherwise; None trusts the sampler's.
    on_rollouts: told of every judged step, for logs; the figures it returns join the step's.
    """

    prompts: Callable[[int], Sequence[Task]]
    collect: Collect
    reward: Reward
    advantage: Kind = "group_std"
    kl_coef: float = 0.0
    reference: Reference | None = None
    max_failed: float = 0.1
    drop_silent: bool = True
    skip_truncated: bool = False
    rescore: Reference | None = None
    on_rollouts: Callable[[int, Groups, Judged], dict[str, float]] | None = None
    stats: Callable[[Sequence[Rollout]], dict[str, float]] | None = None
    load: Callable[[Callable[[], Weights], int], None] | None = None
    drawn_by: Callable[[int], int] = itself
    step: int = 0
    version: int = 0
    _metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kl_coef and self.reference is None:
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
        return {"step": self.step, "version": self.version}

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.version = int(state["step"]), int(state["version"])

    # ------------------------------------------------------------ one step

    def _batch(self) -> list[Unit]:
        begun = time.perf_counter()
        groups = self.collect(self.prompts(self.step), step=self.step, version=self.drawn_by(self.version))
        drawn = time.perf_counter()
        judged = judge(self.reward, groups)
        scored = time.perf_counter()
        seen = self.on_rollouts(self.step, groups, judged) if self.on_rollouts is not None else {}
        check_judged(judged, self.max_failed, f"step {self.step}")
        ref = self._reference_logps(groups)
        units, own = self._train_on(groups, judged, ref)
        own |= rescored(units, self.rescore) if self.rescore is not None else {}
        self._metrics = self._figures(groups, judged, ref) | own
        self._metrics |= seen | {"seconds/rollout": drawn - begun, "seconds/reward": scored - drawn}
        self.step += 1
        return units

    def _train_on(
        self, groups: Groups, judged: Judged, ref: list[Tensor] | None
    ) -> tuple[list[Unit], dict[str, float]]:
        """What of a step is trained, with its columns, and the figures of how that was decided."""
        rewards, valid = self._rewards(groups, judged, ref)
        scores = advantages(self.advantage, rewards, valid)
        silent = [not s[ok].any() for s, ok in zip(scores, valid, strict=True)]
        figures = {"groups/no_signal": float(np.mean(silent))}
        kept = [v[ok].mean() for v, ok in zip(rewards, valid, strict=True) if ok.any()]
        if self.kl_coef and kept:
            figures["reward/penalised"] = float(np.mean(kept))
        return self._units(groups, scores, valid, ref), figures

    def _reference_logps(self, groups: Groups) -> list[Tensor] | None:
        """`ref_logps` of every answer, in order; None without a reference."""
        if self.reference is None:
            return None
        samples = [to_sample(r) for group in groups for r in group]
        drawn: list[Unit] = [s for s in samples if bool(s.mask.any())]
        found = iter(self.reference(drawn))
        return [next(found)["logps"] if bool(s.mask.any()) else torch.zeros(len(s.mask)) for s in samples]

    def _rewards(
        self, groups: Groups, judged: Judged, ref: list[Tensor] | None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Rewards (less the KL penalty) and validity of every group, [G] each."""
        at, rewards, valid = 0, [], []
        for group, outcomes in zip(groups, judged, strict=True):
            values = np.array([o.value if isinstance(o, Score) else np.nan for o in outcomes], np.float64)
            ok = np.array([isinstance(o, Score) and r.length > 0 for o, r in zip(outcomes, group, strict=True)])
            if self.kl_coef and ref is not None:
                for i, r in enumerate(group):
                    values[i] -= self.kl_coef * answer_kl(r, ref[at + i])
            at += len(group)
            rewards.append(values)
            valid.append(ok)
        return rewards, valid

    def _units(
        self, groups: Groups, scores: list[np.ndarray], valid: list[np.ndarray], ref: list[Tensor] | None
    ) -> list[Unit]:
        units: list[Unit] = []
        at = 0
        for group, advantage, ok in zip(groups, scores, valid, strict=True):
            silent = self.drop_silent and not advantage[ok].any()
            for i, rollout in enumerate(group):
                here, at = at, at + 1
                if silent or not ok[i] or (self.skip_truncated and rollout.stop == "length"):
                    continue
                sample = to_sample(rollout)
                sample.cols["advantages"] = torch.full((len(sample.tokens),), float(advantage[i]))
                if ref is not None:
                    sample.cols["ref_logps"] = ref[here]
                units.append(sample)
        return units

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


def judge(reward: Reward, groups: Groups) -> Judged:
    """The outcomes of every group; in one call where the reward allows it."""
    if not isinstance(reward, PerAnswer):
        return [reward(group) for group in groups]
    found = iter(reward([r for group in groups for r in group]))
    return [[next(found) for _ in group] for group in groups]


def rescored(units: Sequence[Unit], rescore: Reference) -> dict[str, float]:
    """Writes the engine's log-probabilities over `old_logps`; how far the sampler's were from them, a token."""
    apart = []
    for unit, column in zip(units, rescore(units), strict=True):
        assert isinstance(unit, Sample)
        unit.cols["old_logps"] = column["logps"]
        apart.append((column["logps"] - unit.cols["sampler_logps"])[unit.mask])
    if not apart:
        return {}
    d = torch.cat(apart)
    figures = {"mean": d.abs().mean(), "max": d.abs().max(), "kl": (d.exp() - 1 - d).mean()}
    return {f"mismatch/{name}": float(value) for name, value in figures.items()}


def answer_kl(rollout: Rollout, ref_logps: Tensor) -> float:
    """The k1 estimate of an answer's KL from the reference, in nats; ref_logps [N] of the whole rollout."""
    mask = torch.tensor(rollout.mask)
    return kl_in_reward(torch.tensor(rollout.logps)[mask], ref_logps[mask])


def check_judged(judged: Judged, max_failed: float, where: str) -> None:
    """Raises RewardFailure when a larger share of the answers than `max_failed` could not be judged."""
    outcomes = [o for group in judged for o in group]
    failed = [o for o in outcomes if not isinstance(o, Score)]
    if len(failed) > max_failed * len(outcomes):
        whys = sorted({f"{type(o).__name__}: {o.why}" for o in failed if isinstance(o, Invalid | InfraError)})
        raise RewardFailure(
            f"{len(failed)} of {len(outcomes)} answers of {where} could not be judged "
            f"(limit {max_failed:.0%}): {'; '.join(whys[:3])}"
        )


def to_sample(rollout: Rollout) -> Sample:
    """The rollout token for token; `old_logps` and `sampler_logps` are the log-probabilities it was drawn with."""
    logps = torch.tensor(rollout.logps, dtype=torch.float32)
    return Sample(
        torch.tensor(rollout.tokens, dtype=torch.int64),
        torch.tensor(rollout.mask, dtype=torch.bool),
        {"old_logps": logps, "sampler_logps": logps},
        {"group": rollout.group, "version": rollout.version, "task": rollout.task.id},
    )
