"""How good a model is at some tasks: accuracy, pass@k, length, style, each with what it is worth.

pass@k: the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, eq. 1), 1 - C(n-c, k) / C(n, k). Confidence
intervals: Wilson's for one sample a task that is right or wrong; else the bootstrap over tasks (answers to one task
are not independent). An answer that could not be judged is left out and counted, never scored 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ladder.base import rng
from ladder.contract.rollouts import Outcome, Reward, Rollout, Sampler, Sampling, Score, Task
from ladder.rewards.format import Format
from ladder.rollout.collect import Collector, Encode

Stats = Callable[[Sequence[Rollout]], dict[str, float]]


@dataclass(slots=True)
class EvalResult:
    """accuracy is the mean score; a task's world may add figures of its own to `stats`. thinking: the share of answers
    that are a well-formed block of thinking followed by an answer (`rewards.format`)."""

    n: int
    samples: int
    accuracy: float
    low: float
    high: float
    length: float
    truncated: float
    thinking: float
    unjudged: int
    pass_at: dict[int, float]
    stats: dict[str, float]
    temperature: float
    graded: bool = False  # scores are not just right or wrong: accuracy is then their mean and no share
    parts: dict[str, float] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Everything but the records, rounded, JSON-able."""
        out: dict[str, Any] = {
            "accuracy": self.accuracy,
            "low": self.low,
            "high": self.high,
            "length": self.length,
            "truncated": self.truncated,
            "thinking": self.thinking,
            **self.stats,
            **{f"pass@{k}": v for k, v in self.pass_at.items()},
            **{f"score/{k}": v for k, v in self.parts.items()},
        }
        rounded: dict[str, Any] = {k: round(float(v), 4) for k, v in out.items()}
        rounded |= {"graded": True} if self.graded else {}
        return rounded | {
            "n": self.n,
            "samples": self.samples,
            "unjudged": self.unjudged,
            "temperature": self.temperature,
        }


def evaluate(
    sampler: Sampler,
    tasks: Sequence[Task],
    reward: Reward,
    encode: Encode,
    sampling: Sampling,
    *,
    samples: int = 1,
    seed: int = 0,
    ks: Sequence[int] = (),
    stats: Stats | None = None,
    right: float = 1.0,
) -> EvalResult:
    """Samples `samples` answers to each task and judges them. right: the score that counts as right for pass@k."""
    groups = Collector(sampler, encode, samples, sampling, seed, "eval")(tasks, step=0, version=0)
    judged = [reward(group) for group in groups]
    rollouts = [r for group in groups for r in group]
    scores = [np.array([o.value for o in outcomes if isinstance(o, Score)]) for outcomes in judged]
    known = [s for s in scores if len(s)]
    if not known:
        raise RuntimeError(f"none of {len(rollouts)} answers could be judged: {judged[0][0]}")
    accuracy = float(np.mean([s.mean() for s in known]))
    graded = any(value not in (0.0, 1.0) for s in known for value in s)
    counts = samples == 1 and not graded
    low, high = wilson(accuracy, len(known)) if counts else bootstrap([float(s.mean()) for s in known], seed)
    return EvalResult(
        n=len(tasks),
        samples=samples,
        accuracy=accuracy,
        low=low,
        high=high,
        length=float(np.mean([r.length for r in rollouts])),
        truncated=float(np.mean([r.stop == "length" for r in rollouts])),
        thinking=float(np.mean([thinks(r, sampling) for r in rollouts])),
        unjudged=sum(not isinstance(o, Score) for outcomes in judged for o in outcomes),
        pass_at=passes(known, ks, right),
        stats=stats(rollouts) if stats else {},
        temperature=sampling.temperature,
        graded=graded,
        parts=part_means(judged),
        records=[
            record(r, o) for g, outcomes in zip(groups, judged, strict=True) for r, o in zip(g, outcomes, strict=True)
        ],
    )


def part_means(judged: Sequence[Sequence[Outcome]]) -> dict[str, float]:
    """The mean of every named component of the scores, where there are several."""
    scores = [o for outcomes in judged for o in outcomes if isinstance(o, Score)]
    names = sorted({name for s in scores for name in s.parts})
    if len(names) < 2:
        return {}
    return {name: float(np.mean([s.parts[name] for s in scores if name in s.parts])) for name in names}


def record(r: Rollout, o: Outcome) -> dict[str, Any]:
    """One answer as people read it."""
    judged = {"reward": o.value, "parts": o.parts} if isinstance(o, Score) else {"reward": None, "why": o.why}
    return {
        "task": r.task.id,
        "prompt": r.task.prompt,
        "answer": r.task.answer,
        "text": r.text,
        "stop": r.stop,
        "length": r.length,
        **judged,
    }


def thinks(r: Rollout, sampling: Sampling) -> bool:
    """Whether an answer is a well-formed block of thinking and an answer; the prompt may have opened the block."""
    opened = isinstance(r.task.prompt, str) and r.task.prompt.rstrip().endswith(sampling.think_open)
    return Format(sampling.think_open, sampling.think_close, opened).well_formed(r)


def passes(scores: Sequence[np.ndarray], ks: Sequence[int], right: float) -> dict[int, float]:
    """pass@k over tasks; a task of which fewer than k answers could be judged says nothing about it."""
    made = {}
    for k in ks:
        each = [pass_at_k(len(s), int((s >= right).sum()), k) for s in scores if len(s) >= k]
        if each:
            made[k] = float(np.mean(each))
    return made


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, c of them right, hold a right one. Raises ValueError when k > n."""
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples a task, there are {n}")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod((n - c - i) / (n - i) for i in range(k))


def wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share p of n."""
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n) if 0 <= p <= 1 else math.nan
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: Sequence[float], seed: int, rounds: int = 2000) -> tuple[float, float]:
    """The 95% percentile interval of the mean, resampling the values."""
    x = np.asarray(values, np.float64)
    picks = rng.np_rng(seed, "bootstrap").integers(0, len(x), (rounds, len(x)))
    low, high = np.percentile(x[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)
