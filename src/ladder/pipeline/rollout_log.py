"""The log of a step's rollouts: a sample of the answers, the watched rewards, the KL from the base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ladder.contract.rollouts import Groups, Judged, Reward, Rollout, Score
from ladder.contract.training import Reference
from ladder.credit.base import to_sample
from ladder.diagnose import answers
from ladder.evals.accuracy import record
from ladder.losses.kl import kl
from ladder.pipeline.alarms import LiveAlarms
from ladder.pipeline.stage import Context
from ladder.rewards.judge import judge

KL_ANSWERS = 128
"""Most answers of a step on which the KL from the base model is measured."""


def watcher(
    ctx: Context, base: Reference | None, rewards: dict[str, Reward], alarms: LiveAlarms
) -> Callable[[int, Groups, Judged], dict[str, float]]:
    """The function that logs a step's rollouts. It writes up to `keep_rollouts` answers to rollouts.jsonl, and returns
    figures of all answers, the watched rewards of all, and the KL from the base model on at most KL_ANSWERS of them
    (no KL if `base` is None)."""

    def watch(step: int, groups: Groups, judged: Judged) -> dict[str, float]:
        pairs = [(r, o) for g, outcomes in zip(groups, judged, strict=True) for r, o in zip(g, outcomes, strict=True)]
        every = max(1, len(pairs) // max(1, ctx.recipe.keep_rollouts))
        logged = pairs[::every][: ctx.recipe.keep_rollouts]
        alarms.answers = [{"step": step + 1, "group": r.group} | record(r, o) for r, o in logged]
        ctx.log.rollouts.write(*alarms.answers)
        figures = answers.figures([r for r, _ in pairs], [o for _, o in pairs])
        for name, reward in rewards.items():
            figures |= watched(name, judge(reward, groups))
        if base is None:
            return figures
        rollouts = [r for r, _ in pairs]
        return figures | {"kl_base": base_kl(rollouts[:: max(1, len(rollouts) // KL_ANSWERS)][:KL_ANSWERS], base)}

    return watch


def watched(name: str, judged: Judged) -> dict[str, float]:
    """The mean of a watched reward (one that is measured but not trained on), and its standard error over prompts."""
    scores = [[o.value for o in outcomes if isinstance(o, Score)] for outcomes in judged]
    means = torch.tensor([sum(s) / len(s) for s in scores if s], dtype=torch.float64)
    values = [x for s in scores for x in s]
    n = sum(map(len, judged))
    figures = {f"watched_failed/{name}": 1 - len(values) / n} if len(values) < n else {}
    if values:
        figures[f"watched/{name}"] = sum(values) / len(values)
    if len(means) >= 2:
        figures[f"watched_error/{name}"] = float(means.std()) / len(means) ** 0.5
    return figures


def base_kl(rollouts: Sequence[Rollout], base: Reference) -> float:
    """KL(policy || base) per token, in nats: the mean of k1 over sampled tokens (k3's tail is too heavy for it)."""
    samples = [s for s in map(to_sample, rollouts) if bool(s.mask.any())]
    if not samples:
        return 0.0
    columns = base(samples)
    each = [kl(s.cols["old_logps"], c["logps"], "k1")[s.mask] for s, c in zip(samples, columns, strict=True)]
    return float(torch.cat(each).mean())
