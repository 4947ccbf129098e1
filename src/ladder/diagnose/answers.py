"""What the alarms want to know of a step's answers beside their rewards: numbers that join the step's figures.

    answers/distinct    different texts per prompt: below 1 the answers no longer depend on what was asked
    answers/repeated    of an answer's 4-grams of tokens, the share that stood in it before (mean over answers)
    reward/max          the best reward of the step
    reward/length_r2    the share of the rewards' variance that a line over answer length explains
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ladder.contract.rollouts import Outcome, Rollout, Score

GRAM = 4
APART = 0.05
"""The share of answers whose reward must differ from the commonest one for its ties to length to mean anything."""
LOOKED_AT = 128
"""Answers of a step whose n-grams are counted."""


def figures(rollouts: Sequence[Rollout], outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Of all answers to a step and what was said of them, in one order."""
    prompts = len({r.group for r in rollouts})
    found = {"answers/distinct": len({r.text for r in rollouts}) / prompts} if prompts else {}
    some = rollouts[:: max(1, len(rollouts) // LOOKED_AT)]
    shares = [repeated([t for t, drawn in zip(r.tokens, r.mask, strict=True) if drawn]) for r in some]
    found |= {"answers/repeated": float(np.mean(shares))} if shares else {}
    judged = [(o.value, r.length) for r, o in zip(rollouts, outcomes, strict=True) if isinstance(o, Score)]
    if judged:
        rewards, lengths = np.array(judged, np.float64).T
        found["reward/max"] = float(rewards.max())
        # when nearly all have one reward, a few long failures would explain all the variance there is
        alike = float(np.unique(rewards, return_counts=True)[1].max()) / len(rewards)
        if rewards.std() > 0 and lengths.std() > 0 and alike <= 1 - APART:
            found["reward/length_r2"] = float(np.corrcoef(rewards, lengths)[0, 1] ** 2)
    return found


def repeated(tokens: Sequence[int]) -> float:
    """The share of 4-grams that are not the first of their kind; 0 for fewer than four tokens."""
    grams = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
