"""The detectors behind the alarms: each reads the figures of all steps so far and returns a `Seen`, or None.

Thresholds were set on healthy runs and on runs with a planted fault (`benchmarks/alarms.py`, docs/diagnose.md). What
keeps them silent on healthy runs: growing answers alone are no length drift (length must explain the reward, or more
answers be truncated); groups of zero variance are no fault when every task is solved; and a fall of a watched reward
must exceed that figure's own noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field, field_validator

from ladder.base.config import Config, near
from ladder.diagnose.finding import Curve
from ladder.diagnose.series import WIDTH, History, Series


class Alarms(Config):
    """Which alarms act, and their thresholds.

    stop: alarms that end the run (everything is saved). off: alarms that are switched off. kl: nats of KL(policy ||
    reference or base) per answer. mismatch: nats per token between policy and sampler before a step's first update.
    clipped: share of trained tokens whose ratio is clipped. repeated: increase of the share of repeated 4-grams over
    that at the start.
    """

    stop: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    kl: float = Field(default=50.0, gt=0)
    mismatch: float = Field(default=0.01, gt=0)
    clipped: float = Field(default=0.3, gt=0, le=1)
    repeated: float = Field(default=0.25, gt=0, le=1)

    @field_validator("stop", "off")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in DETECTORS:
                raise ValueError(f"no alarm is called {name!r}{near(name, list(DETECTORS))}")
        return names


@dataclass(frozen=True, slots=True)
class Seen:
    """What a detector found. says: the problem in a sentence. next: what to do. figures: the curves that show it."""

    says: str
    next: str
    figures: dict[str, Curve] = field(default_factory=dict)


def proxy_and_gold(records: History, _: Alarms) -> Seen | None:
    """A watched (gold) reward falls from its best while the trained (proxy) reward holds or rises."""
    for name in (name for name in records.names if name.startswith("watched/")):
        # either reward may be missing at a step: only steps that have both are compared
        both = np.intersect1d(records.column(name)[0], records.column("reward/mean")[0], assume_unique=True)
        gold, reward = Series(records, name, both), Series(records, "reward/mean", both)
        if len(gold.means) < 2:
            continue
        standard_error = Series(records, name.replace("watched/", "watched_error/"), both)
        best, gold_now = int(gold.means.argmax()), fallen_to(gold, standard_error)
        if gold_now is not None and reward.now >= reward.means[best] - reward.noise:
            return Seen(
                f"{name} fell from {gold.means[best]:.3g} to {gold_now:.3g} while the reward went from "
                f"{reward.means[best]:.3g} to {reward.now:.3g}: the policy exploits something that the trained reward "
                "pays for and the watched reward does not",
                "read the two answers; correct the reward, or keep the policy closer to its reference (kl_coef), or "
                "stop the run where the watched reward was highest",
                {name: gold.curve, "reward/mean": reward.curve},
            )
    return None


def fallen_to(held: Series, error: Series) -> float | None:
    """The value to which a figure has fallen from its best mean, or None when it has not: the mean of the last steps,
    or the last step alone where one step fell far enough.

    held: the figure. error: its standard error at each step (where steps lack it, `held.noise` is taken instead). A
    fall counts when it exceeds five standard errors of the difference and 5% of the best mean: five, because the best
    of many noisy means lies above the truth, and because every step is a new test.
    """
    step_errors = error.x if len(error) == len(held) else np.full(len(held), held.noise)
    best = int(held.means.argmax())
    best_mean = float(held.means[best])
    best_variance = float(np.square(step_errors[best : best + WIDTH]).sum()) / WIDTH**2
    mean_variance = float(np.square(step_errors[-WIDTH:]).sum()) / WIDTH**2
    for now, variance in ((held.now, mean_variance), (float(held.x[-1]), step_errors[-1] ** 2)):
        if best_mean - now > max(5 * math.sqrt(best_variance + variance), 0.05 * abs(best_mean)):
            return now
    return None


def kl(records: History, alarms: Alarms) -> Seen | None:
    """The KL divergence of an answer from the reference (or base) exceeds `alarms.kl`.

    Read from `kl/response`, nats per answer; without it, from `kl_base` (nats per token) x `length/mean`.
    """
    per_answer, per_token, length = (Series(records, n) for n in ("kl/response", "kl_base", "length/mean"))
    if len(per_answer):
        now, curve = per_answer.now, per_answer.curve
    elif len(per_token) == len(length):
        now, curve = per_token.now * length.now, per_token.curve
    else:
        return None
    if not now > alarms.kl:
        return None
    return Seen(
        f"the KL divergence of an answer from the policy at the start is {now:.1f} nats, above {alarms.kl:g}",
        "raise kl_coef, lower the learning rate, or raise alarms.kl if such a distance is intended",
        {"KL": curve},
    )


def length_drift(records: History, _: Alarms) -> Seen | None:
    """Length itself determines the reward, or growing answers are truncated."""
    length, r2, truncated = (Series(records, n) for n in ("length/mean", "reward/length_r2", "truncated"))
    if not len(length.means):
        return None
    growth = length.now / max(length.start, 1e-9)
    rewarded = len(r2) >= 4 and float(r2.x[-4:].min()) > 0.95
    rewarded |= len(r2.means) > 0 and r2.now > 0.9 and not 0.8 < growth < 1.25
    cut_off = len(truncated.means) > 0 and truncated.now - truncated.start > 0.25 and growth > 1.25
    if not rewarded and not cut_off:
        return None
    evidence = (
        f"length explains {r2.now:.0%} of the variance of the rewards"
        if rewarded
        else f"{truncated.now:.0%} of the answers are cut off at the limit ({truncated.start:.0%} at the start)"
    )
    return Seen(
        f"the mean length of answers went from {length.start:.1f} to {length.now:.1f} tokens, and {evidence}",
        "read the two answers; take length out of the reward, or give answers that are cut off no reward",
        {"length/mean": length.curve, "reward/length_r2": r2.curve, "truncated": truncated.curve},
    )


def collapse(records: History, _: Alarms) -> Seen | None:
    """Different prompts get the same answers: the policy has collapsed to a few texts."""
    distinct, entropy = Series(records, "answers/distinct"), Series(records, "entropy")
    if not distinct.now < 0.5 or not distinct.means.max() >= 0.75:
        return None
    entropies = f", entropy {entropy.start:.2f} to {entropy.now:.2f} nats per token" if len(entropy.means) else ""
    return Seen(
        f"there are {distinct.now:.2f} distinct answers per prompt, down from {distinct.means.max():.2f}{entropies}: "
        "answers no longer depend on the prompt",
        "lower the learning rate, add kl_coef or the loss's entropy_coef, and check what the reward pays for",
        {"answers/distinct": distinct.curve, "entropy": entropy.curve},
    )


def no_signal(records: History, _: Alarms) -> Seen | None:
    """Nearly every group has zero reward variance, and the mean reward is not near the best reward of the run."""
    zero_variance, reward, best = (Series(records, n) for n in ("groups/no_signal", "reward/mean", "reward/max"))
    if len(zero_variance) < 8 or not len(best) or not zero_variance.x[-8:].mean() > 0.9:
        return None
    highest, lowest = float(best.x.max()), float(reward.x.min())
    if reward.now > lowest + 0.8 * (highest - lowest) and highest > lowest:
        return None  # nearly all tasks are solved
    return Seen(
        f"in {zero_variance.x[-8:].mean():.0%} of the groups all answers have the same reward, and the mean reward is "
        f"{reward.now:.3g}: there is almost no learning signal",
        "take easier tasks or a graded reward, larger groups, or a higher temperature",
        {"groups/no_signal": zero_variance.curve, "reward/mean": reward.curve},
    )


def repetition(records: History, alarms: Alarms) -> Seen | None:
    """The share of repeated 4-grams rose by more than `alarms.repeated` since the start."""
    share = Series(records, "answers/repeated")
    if not share.now > share.start + alarms.repeated:
        return None
    return Seen(
        f"{share.now:.0%} of the 4-grams of an answer occurred earlier in it, {share.start:.0%} at the start",
        "read the two answers; a reward that counts things is often exploited by repetition",
        {"answers/repeated": share.curve},
    )


def mismatch(records: History, alarms: Alarms) -> Seen | None:
    """Policy and sampler assign different log-probabilities before a step's first update."""
    # a loss with an importance correction recomputes the old log-probabilities, so its ratio starts at 1 anyway
    corrected = Series(records, "mismatch/kl")
    divergence = corrected if len(corrected) else Series(records, "first/ratio/approx_kl")
    if not divergence.now > alarms.mismatch:
        return None
    return Seen(
        f"policy and sampler differ by {divergence.now:.2g} nats per token before a step's first update: the answers "
        "are not sampled from the policy that is trained",
        "check the sampler's weights, precision and temperature; the loss's importance_cap corrects for the remainder",
        {divergence.name: divergence.curve},
    )


def clipping(records: History, alarms: Alarms) -> Seen | None:
    """Many ratios are clipped: a step's updates move the policy further than the loss's trust region."""
    share = Series(records, "ratio/clipped")
    if not share.now > alarms.clipped:
        return None
    return Seen(
        f"the ratio is clipped at {share.now:.0%} of the trained tokens",
        "lower the learning rate, or the number of epochs or minibatches of a step",
        {"ratio/clipped": share.curve},
    )


DETECTORS: dict[str, Callable[[History, Alarms], Seen | None]] = {
    "proxy_and_gold": proxy_and_gold,
    "kl": kl,
    "length_drift": length_drift,
    "collapse": collapse,
    "no_signal": no_signal,
    "repetition": repetition,
    "mismatch": mismatch,
    "clipping": clipping,
}
