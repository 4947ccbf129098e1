"""Overoptimisation: proxy and gold reward against the distance from the reference, with and without the anchor.

Gao et al. 2022 (arXiv:2210.10760): a policy that climbs a learned reward first gains of the gold reward and then loses
it, while the learned one goes on climbing; over d = sqrt(KL) the gold reward is d (a - b log d) for reinforcement
learning and d (a - b d) for best-of-n. Here gold is known exactly (`tasks/chain/gold.py`), the proxy is a reward model
trained on erring annotators' pairs, and the anchor is the k1 KL to the base in the reward.

Left out: fitting Gao's two coefficients; with one size of reward model they would say nothing about scaling.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ladder.base.files import read_json
from ladder.base.jsonl import read_lines
from ladder.lab.experiment import Experiment, Measured, Verdict
from ladder.lab.stats import Effect, difference, effect
from ladder.report.figure import COLOURS, INK, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"grpo": "GRPO", "ppo": "PPO"}
ANCHORS = {"none": 0.0, "small": 0.02, "medium": 0.1, "large": 0.4}
WIDTH = 8
"""Steps of a mean: the noise of one step's prompts would make every best look better than its end."""


def measure(run: Path) -> Measured:
    """{stage: {"kl", "proxy", "gold": means over WIDTH steps}, "best_of_n": the curve, "reward_model": held out}."""
    found: Measured = {f"{kind}_{a}": _curves(run / f"{kind}_{a}") for kind in KINDS for a in ANCHORS}
    found["best_of_n"] = read_json(run / "best_of_n" / "summary.json")["curve"]
    found["reward_model"] = read_json(run / "reward_model" / "summary.json")["held_out"]
    return found


def _curves(stage: Path) -> dict[str, list[float]]:
    rows = read_lines(stage / "metrics.jsonl")
    kl = [r["kl/response"] if "kl/response" in r else r["kl_base"] * r["length/mean"] for r in rows]
    raw = {"kl": kl, "proxy": [r["reward/mean"] for r in rows], "gold": [r["watched/gold"] for r in rows]}
    n = len(rows) // WIDTH * WIDTH
    return {name: np.array(x[:n]).reshape(-1, WIDTH).mean(1).round(5).tolist() for name, x in raw.items()}


def verdict(measured: Sequence[Measured]) -> Verdict:
    """Holds when, for GRPO and PPO, gold falls from its best without the anchor and the medium anchor ends with more of
    it (intervals above 0), while the proxy is higher at the end than where gold was best (in every seed)."""
    fell = {k: effect([_fall(m[f"{k}_none"]) for m in measured]) for k in KINDS}
    climbed = {k: effect([_climb(m[f"{k}_none"]) for m in measured]) for k in KINDS}
    kept = {k: difference(_ends(measured, f"{k}_medium"), _ends(measured, f"{k}_none")) for k in KINDS}
    holds = all(e.positive for each in (fell, kept) for e in each.values())
    holds &= all(min(e.each) > 0 for e in climbed.values())
    more: dict[str, Effect] = {}
    for k, words in KINDS.items():
        more |= {f"{words} without anchor, fall of gold from its best": fell[k]}
        more |= {f"{words} without anchor, rise of the proxy since then": climbed[k]}
        more |= {f"{words}, gold at the end, beta 0.1 less beta 0": kept[k]}
        anchored = effect([_fall(m[f"{k}_medium"]) for m in measured])
        more |= {f"{words} at beta 0.1, fall of gold from its best": anchored}
    peak = effect([max(p["gold"] for p in m["best_of_n"]) for m in measured])
    last = effect([m["best_of_n"][-1]["gold"] for m in measured])
    more |= {"best-of-n, gold at the best n less gold at the largest": difference(peak.each, last.each)}
    told = [
        f"{words} without an anchor loses {fell[k].mean:.2f} of gold from its best while the proxy rises by "
        f"{climbed[k].mean:.2f}; with beta 0.1 it ends {kept[k].text('+.2f')} higher"
        for k, words in KINDS.items()
    ]
    sentence = (
        f"{'; '.join(told)}. Best-of-n reaches {peak.mean:.2f} of gold at its best n and {last.mean:.2f} at n = "
        f"{measured[0]['best_of_n'][-1]['n']:.0f}, within {measured[0]['best_of_n'][-1]['kl']:.1f} nats."
    )
    return Verdict(holds, kept["grpo"], sentence, more, _table(measured))


def _fall(curves: dict[str, list[float]]) -> float:
    return max(curves["gold"]) - curves["gold"][-1]


def _climb(curves: dict[str, list[float]]) -> float:
    """Of the proxy, since gold was best."""
    return curves["proxy"][-1] - curves["proxy"][int(np.argmax(curves["gold"]))]


def _ends(measured: Sequence[Measured], stage: str) -> list[float]:
    return [m[stage]["gold"][-1] for m in measured]


def _table(measured: Sequence[Measured]) -> list[list[str]]:
    rows = [["", "beta", "best gold", "gold at the end", "proxy then", "KL of an answer then"]]
    for kind, words in KINDS.items():
        for anchor, beta in ANCHORS.items():
            curves = [m[f"{kind}_{anchor}"] for m in measured]
            best = np.mean([max(c["gold"]) for c in curves])
            ends = [np.mean([c[name][-1] for c in curves]) for name in ("gold", "proxy", "kl")]
            rows.append([words, f"{beta:g}", f"{best:.2f}", f"{ends[0]:.2f}", f"{ends[1]:.2f}", f"{ends[2]:.1f}"])
    for i, point in enumerate(measured[0]["best_of_n"]):
        gold, proxy = (np.mean([m["best_of_n"][i][name] for m in measured]) for name in ("gold", "reward"))
        rows.append([f"best of {point['n']:.0f}", "", "", f"{gold:.2f}", f"{proxy:.2f}", f"{point['kl']:.1f}"])
    return rows


def draw(measured: Sequence[Measured], figure: Figure) -> None:
    axes = figure.subplots(1, 3, sharey=True)
    colours = (COLOURS[1], COLOURS[3], COLOURS[2], COLOURS[0])
    for ax, (kind, words) in zip(axes, KINDS.items(), strict=False):
        for (anchor, beta), colour in zip(ANCHORS.items(), colours, strict=True):
            for i, m in enumerate(measured):
                curves = m[f"{kind}_{anchor}"]
                _lines(ax, curves["kl"], curves["gold"], curves["proxy"], colour, f"beta {beta:g}" if i == 0 else None)
        ax.set_title(words, loc="left", fontsize=9.5)
        ax.legend(frameon=False, fontsize=7, loc="lower right")
    for m in measured:
        points: Any = m["best_of_n"]
        kl, gold, proxy = ([p[name] for p in points] for name in ("kl", "gold", "reward"))
        _lines(axes[2], kl, gold, proxy, INK, None)
    axes[2].set_title("best of n = 1 to 64", loc="left", fontsize=9.5)
    axes[2].plot([], [], "-", color=SOFT, label="gold")
    axes[2].plot([], [], ":", color=SOFT, label="proxy")
    axes[2].legend(frameon=False, fontsize=7, loc="lower right")
    for ax in axes:
        ax.set_xlabel("square root of the KL of an answer, nats", fontsize=8)
    axes[0].set_ylabel("reward")


def _lines(
    axes: Axes, kl: Sequence[float], gold: Sequence[float], proxy: Sequence[float], colour: str, label: str | None
) -> None:
    distance = np.sqrt(np.maximum(0.0, kl))
    axes.plot(distance, gold, "-", color=colour, linewidth=1.4, label=label)
    axes.plot(distance, proxy, ":", color=colour, linewidth=1.1)


EXPERIMENT = Experiment(
    name="overoptimisation",
    claim=(
        "Without an anchor to the reference, a policy that climbs a learned reward gains gold reward at first and then "
        "loses it while the learned one goes on climbing; with the KL in the reward gold holds (Gao et al. 2022, "
        "arXiv:2210.10760)"
    ),
    measure=measure,
    verdict=verdict,
    draw=draw,
    size=(11.0, 3.6),
)
