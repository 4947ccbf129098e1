"""The alarms: each reads figures of the steps so far and says in a sentence what is wrong, or nothing.

Thresholds were set on runs that went well and runs with a planted fault (`benchmarks/alarms.py`, docs/diagnose.md).
What makes them quiet on good runs: a longer answer is no drift while the held-out check rises, groups without a signal
are no fault when everything is solved, and a fall must be larger than the noise of the figure itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field, field_validator

from ladder.base.config import Config, near
from ladder.diagnose.finding import Curve
from ladder.diagnose.series import WIDTH, Series

Rows = Sequence[Mapping[str, float | None]]


class Alarms(Config):
    """stop: alarms that end the run (everything is saved). off: alarms that are not wanted. kl: nats of an answer's KL
    from the base (or reference). mismatch: nats a token between policy and sampler before any update of a step.
    clipped: share of trained tokens whose ratio is clipped. repeated: share of repeated 4-grams, above the start's."""

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
    """What a detector saw: the sentence, what to do next, the curves that show it."""

    says: str
    next: str
    figures: dict[str, Curve] = field(default_factory=dict)


def proxy_and_gold(rows: Rows, _: Alarms) -> Seen | None:
    """The reward holds or climbs while a check that is not trained on falls from its best."""
    for name in sorted({k for r in rows for k in r if k.startswith("watched/")}):
        # a judge may fail a step: what is compared are the steps that have both
        both = [r for r in rows if len(Series([r], name)) and len(Series([r], "reward/mean"))]
        held, reward = Series(both, name), Series(both, "reward/mean")
        if len(held.means) < 2:
            continue
        best, now = int(held.means.argmax()), fallen_to(held, Series(both, name.replace("watched/", "watched_error/")))
        if now is not None and reward.now >= reward.means[best] - reward.noise:
            return Seen(
                f"{name} fell from {held.means[best]:.3g} to {now:.3g} while the reward went from "
                f"{reward.means[best]:.3g} to {reward.now:.3g}: the policy found what the reward pays for and the "
                "check does not",
                "read the two answers; mend the reward, or hold the policy nearer to its reference (kl_coef), or stop "
                "where the check was best",
                {name: held.curve, "reward/mean": reward.curve},
            )
    return None


def fallen_to(held: Series, error: Series) -> float | None:
    """Where a figure has fallen to from its best mean, when that is more than chance and a twentieth of the best: the
    mean of the last steps, or the last step alone where it fell at once. error: of each step (without it, the figure's
    own noise). Five deviations, because the best of many means lies above the truth, and many steps are looked at."""
    each = error.x if len(error) == len(held) else np.full(len(held), held.noise)
    best = int(held.means.argmax())
    top, there = float(held.means[best]), float(np.square(each[best : best + WIDTH]).sum()) / WIDTH**2
    for now, own in ((held.now, float(np.square(each[-WIDTH:]).sum()) / WIDTH**2), (float(held.x[-1]), each[-1] ** 2)):
        if top - now > max(5 * math.sqrt(there + own), 0.05 * abs(top)):
            return now
    return None


def kl(rows: Rows, alarms: Alarms) -> Seen | None:
    """An answer's KL from the base beyond the bound."""
    whole, token, length = (Series(rows, n) for n in ("kl/response", "kl_base", "length/mean"))
    if len(whole):
        now, curve = whole.now, whole.curve
    elif len(token) == len(length):
        now, curve = token.now * length.now, token.curve
    else:
        return None
    if not now > alarms.kl:
        return None
    return Seen(
        f"the KL of an answer from where the policy started is {now:.1f} nats, above {alarms.kl:g}",
        "raise kl_coef, lower the learning rate, or raise alarms.kl if such a distance is meant",
        {"KL": curve},
    )


def length_drift(rows: Rows, _: Alarms) -> Seen | None:
    """Length itself is paid, or answers run into their limit."""
    length, tied, cut = (Series(rows, n) for n in ("length/mean", "reward/length_r2", "truncated"))
    if not len(length.means):
        return None
    moved = length.now / max(length.start, 1e-9)
    paid = len(tied) >= 4 and float(tied.x[-4:].min()) > 0.95
    paid |= len(tied.means) > 0 and tied.now > 0.9 and not 0.8 < moved < 1.25
    full = len(cut.means) > 0 and cut.now - cut.start > 0.25 and moved > 1.25
    if not paid and not full:
        return None
    why = (
        f"{tied.now:.0%} of what tells their rewards apart is their length"
        if paid
        else f"{cut.now:.0%} of them are cut off at the limit ({cut.start:.0%} at the start)"
    )
    return Seen(
        f"answers went from {length.start:.1f} to {length.now:.1f} tokens, and {why}",
        "read the two answers; take length out of the reward, or give answers that are cut off no reward",
        {"length/mean": length.curve, "reward/length_r2": tied.curve, "truncated": cut.curve},
    )


def collapse(rows: Rows, _: Alarms) -> Seen | None:
    """Different prompts get the same answers: the policy has settled on a few texts."""
    distinct, entropy = Series(rows, "answers/distinct"), Series(rows, "entropy")
    if not distinct.now < 0.5 or not distinct.means.max() >= 0.75:
        return None
    told = f", entropy {entropy.start:.2f} to {entropy.now:.2f} nats a token" if len(entropy.means) else ""
    return Seen(
        f"there are {distinct.now:.2f} different answers to each prompt, once {distinct.means.max():.2f}{told}: "
        "answers no longer depend on what is asked",
        "lower the learning rate, add kl_coef or the loss's entropy_coef, and look at what the reward pays for",
        {"answers/distinct": distinct.curve, "entropy": entropy.curve},
    )


def no_signal(rows: Rows, _: Alarms) -> Seen | None:
    """Nearly every group has one reward, and it is not the best there was."""
    silent, reward, best = (Series(rows, n) for n in ("groups/no_signal", "reward/mean", "reward/max"))
    if len(silent) < 8 or not len(best) or not silent.x[-8:].mean() > 0.9:
        return None
    top, low = float(best.x.max()), float(reward.x.min())
    if reward.now > low + 0.8 * (top - low) and top > low:
        return None  # nearly all is solved
    return Seen(
        f"{silent.x[-8:].mean():.0%} of the groups have one reward for all their answers, and the mean reward is "
        f"{reward.now:.3g}: there is next to nothing to learn from",
        "take easier or graded tasks, larger groups, or a higher temperature",
        {"groups/no_signal": silent.curve, "reward/mean": reward.curve},
    )


def repetition(rows: Rows, alarms: Alarms) -> Seen | None:
    """Answers repeat themselves much more than they did."""
    share = Series(rows, "answers/repeated")
    if not share.now > share.start + alarms.repeated:
        return None
    return Seen(
        f"{share.now:.0%} of the 4-grams in an answer stood in it before, {share.start:.0%} at the start",
        "read the two answers; a reward that counts things is often gamed so",
        {"answers/repeated": share.curve},
    )


def mismatch(rows: Rows, alarms: Alarms) -> Seen | None:
    """Policy and sampler differ before any update of the step."""
    corrected = Series(rows, "mismatch/kl")  # where a loss corrects, the ratio's own old log-probabilities are new ones
    apart = corrected if len(corrected) else Series(rows, "first/ratio/approx_kl")
    if not apart.now > alarms.mismatch:
        return None
    return Seen(
        f"policy and sampler are {apart.now:.2g} nats a token apart before a step's first update: the answers are not "
        "drawn from the policy that is trained",
        "look at the sampler's weights, precision and temperature; the loss's importance_cap corrects for what is left",
        {apart.name: apart.curve},
    )


def clipping(rows: Rows, alarms: Alarms) -> Seen | None:
    """Many ratios are clipped: the updates of a step go further than the loss trusts."""
    share = Series(rows, "ratio/clipped")
    if not share.now > alarms.clipped:
        return None
    return Seen(
        f"the ratio is clipped at {share.now:.0%} of the trained tokens",
        "lower the learning rate, the epochs or the minibatches of a step",
        {"ratio/clipped": share.curve},
    )


DETECTORS: dict[str, Callable[[Rows, Alarms], Seen | None]] = {
    "proxy_and_gold": proxy_and_gold,
    "kl": kl,
    "length_drift": length_drift,
    "collapse": collapse,
    "no_signal": no_signal,
    "repetition": repetition,
    "mismatch": mismatch,
    "clipping": clipping,
}
