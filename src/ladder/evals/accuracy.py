"""Evaluation of a model on tasks: accuracy with a 95% confidence interval, pass@k, length, truncation, style.

pass@k: the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, eq. 1), 1 - C(n-c, k) / C(n, k). Confidence
interval: Wilson's score interval for one sample per task scored 0 or 1; otherwise the bootstrap over tasks, because
several answers to one task are not independent. An answer that could not be judged is left out and counted in
`unjudged`, never scored 0.
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
from ladder.rewards.judge import RewardFailure, judge
from ladder.rollout.collect import Collector, Encode

AnswerStats = Callable[[Sequence[Rollout]], dict[str, float]]
"""Further figures of rollouts, computed from their texts by the task's world."""


@dataclass(slots=True)
class EvalResult:
    """The figures of one evaluation.

    n: tasks. samples: answers per task. accuracy: the mean over tasks of the mean score. low, high: its 95% confidence
    interval. length: mean number of sampled tokens. truncated: share of answers cut off at the token limit. thinking:
    share of answers that are a well-formed thinking block followed by an answer (`rewards.format`). unjudged: answers
    without a score. pass_at: pass@k by k. stats: further figures from the task's world. temperature: of the sampling.
    parts: mean of each reward component. records: one per answer, see `record`.
    """

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
    graded: bool = False  # a score other than 0 and 1 occurred: accuracy is then a mean score, not a share
    parts: dict[str, float] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """All figures without the records, JSON-able, rounded to four decimals."""
        figures: dict[str, Any] = {
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
        rounded: dict[str, Any] = {k: round(float(v), 4) for k, v in figures.items()}
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
    stats: AnswerStats | None = None,
    right: float = 1.0,
) -> EvalResult:
    """Samples `samples` answers to each task and judges them.

    encode: text to token ids. ks: the k of pass@k. stats: further figures to compute. right: the lowest score that
    counts as correct for pass@k. Raises RewardFailure when no answer could be judged.
    """
    groups = Collector(sampler, encode, samples, sampling, seed, "eval")(tasks, step=0, version=0)
    judged = judge(reward, groups)
    rollouts = [r for group in groups for r in group]
    scores = [np.array([o.value for o in outcomes if isinstance(o, Score)]) for outcomes in judged]
    judged_scores = [s for s in scores if len(s)]
    if not judged_scores:
        raise RewardFailure(f"none of {len(rollouts)} answers could be judged: {judged[0][0]}")
    accuracy = float(np.mean([s.mean() for s in judged_scores]))
    graded = any(value not in (0.0, 1.0) for s in judged_scores for value in s)
    if samples == 1 and not graded:
        low, high = wilson(accuracy, len(judged_scores))
    else:
        low, high = bootstrap([float(s.mean()) for s in judged_scores], seed)
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
        pass_at=passes(judged_scores, ks, right),
        stats=stats(rollouts) if stats else {},
        temperature=sampling.temperature,
        graded=graded,
        parts=part_means(judged),
        records=[
            record(r, o) for g, outcomes in zip(groups, judged, strict=True) for r, o in zip(g, outcomes, strict=True)
        ],
    )


def part_means(judged: Sequence[Sequence[Outcome]]) -> dict[str, float]:
    """The mean of every named component of the scores; empty for fewer than two components."""
    scores = [o for outcomes in judged for o in outcomes if isinstance(o, Score)]
    names = sorted({name for s in scores for name in s.parts})
    if len(names) < 2:
        return {}
    return {name: float(np.mean([s.parts[name] for s in scores if name in s.parts])) for name in names}


def record(r: Rollout, o: Outcome) -> dict[str, Any]:
    """One judged answer as JSON-able data: a line of rollouts.jsonl or of an evaluation's records."""
    outcome = {"reward": o.value, "parts": o.parts} if isinstance(o, Score) else {"reward": None, "why": o.why}
    return {
        "task": r.task.id,
        "prompt": r.task.prompt,
        "answer": r.task.answer,
        "text": r.text,
        "stop": r.stop,
        "length": r.length,
        **outcome,
    }


def thinks(r: Rollout, sampling: Sampling) -> bool:
    """Whether a rollout is a well-formed thinking block followed by an answer; the prompt may hold the opening tag."""
    opened = isinstance(r.task.prompt, str) and r.task.prompt.rstrip().endswith(sampling.think_open)
    return Format(sampling.think_open, sampling.think_close, opened).well_formed(r)


def passes(scores: Sequence[np.ndarray], ks: Sequence[int], right: float) -> dict[int, float]:
    """The mean of pass@k over tasks, by k. scores: of each task, its judged answers' scores [judged]. A task with fewer
    than k judged answers is left out of that k; a k without tasks is left out. right: the lowest correct score."""
    means = {}
    for k in ks:
        estimates = [pass_at_k(len(s), int((s >= right).sum()), k) for s in scores if len(s) >= k]
        if estimates:
            means[k] = float(np.mean(estimates))
    return means


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that k of n samples, c of them correct, include a correct one. Raises ValueError for k > n."""
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples a task, there are {n}")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod((n - c - i) / (n - i) for i in range(k))


def wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share p observed in n trials. z: normal quantile; 1.96 gives 95%."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n) if 0 <= p <= 1 else math.nan
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def bootstrap(values: Sequence[float], seed: int, rounds: int = 2000) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of the mean. rounds: resamples of `values`."""
    x = np.asarray(values, np.float64)
    indices = rng.np_rng(seed, "bootstrap").integers(0, len(x), (rounds, len(x)))
    low, high = np.percentile(x[indices].mean(1), [2.5, 97.5])
    return float(low), float(high)
