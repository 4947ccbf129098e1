"""Figures of one step's rollouts that the alarms need beside the rewards; they join the step's metrics.

    answers/distinct    distinct completions per prompt: below 1 the completions no longer depend on the prompt
    answers/repeated    share of a completion's token 4-grams that occurred earlier in it (mean over completions)
    reward/max          the highest reward of the step
    reward/length_r2    share of the rewards' variance that a linear fit to completion length explains (R squared)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ladder.contract.rollouts import Outcome, Rollout, Score

GRAM = 4
APART = 0.05
"""`reward/length_r2` is computed only if at least this share of rewards differs from the commonest reward."""
LOOKED_AT = 128
"""Rollouts of a step whose n-grams are counted."""


def figures(rollouts: Sequence[Rollout], outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The figures of a step's rollouts; outcomes[i] is the outcome of rollouts[i]."""
    num_prompts = len({r.group for r in rollouts})
    metrics = {"answers/distinct": len({r.text for r in rollouts}) / num_prompts} if num_prompts else {}
    sample = rollouts[:: max(1, len(rollouts) // LOOKED_AT)]
    shares = [repeated([t for t, sampled in zip(r.tokens, r.mask, strict=True) if sampled]) for r in sample]
    metrics |= {"answers/repeated": float(np.mean(shares))} if shares else {}
    judged = [(o.value, r.length) for r, o in zip(rollouts, outcomes, strict=True) if isinstance(o, Score)]
    if judged:
        rewards, lengths = np.array(judged, np.float64).T
        metrics["reward/max"] = float(rewards.max())
        # where nearly all rewards are equal, a few long failures would explain all of the variance
        commonest_share = float(np.unique(rewards, return_counts=True)[1].max()) / len(rewards)
        if rewards.std() > 0 and lengths.std() > 0 and commonest_share <= 1 - APART:
            metrics["reward/length_r2"] = float(np.corrcoef(rewards, lengths)[0, 1] ** 2)
    return metrics


def repeated(tokens: Sequence[int]) -> float:
    """The share of token 4-grams that occurred earlier in `tokens`; 0 for fewer than four tokens."""
    grams = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
