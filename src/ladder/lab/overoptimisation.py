"""Reward overoptimisation: proxy and gold reward against the distance from the reference, with and without KL penalty.

Gao et al. 2022 (arXiv:2210.10760): the gold reward of a policy trained on a learned (proxy) reward first rises and then
falls, while the proxy reward keeps rising; over d = sqrt(KL) the gold reward is d (a - b log d) for reinforcement
learning and d (a - b d) for best-of-n. Here the gold reward is known exactly (`tasks/chain/gold.py`), the proxy is a
reward model trained on pairs from annotators who err, and the anchor is the k1 KL to the base model in the reward.

Left out: a fit of Gao's two coefficients; with one size of reward model it would show nothing about scaling.
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
"""Name of the anchor in the stages' names -> beta, the coefficient of the KL in the reward."""
WIDTH = 8
"""Steps averaged to one point: the noise of single steps' prompts would bias the best value of a curve upwards."""


def measure(run: Path) -> Measured:
    """{stage: {"kl", "proxy", "gold": means over WIDTH steps}, "best_of_n": the curve, "reward_model": held out}."""
    figures: Measured = {f"{kind}_{a}": _curves(run / f"{kind}_{a}") for kind in KINDS for a in ANCHORS}
    figures["best_of_n"] = read_json(run / "best_of_n" / "summary.json")["curve"]
    figures["reward_model"] = read_json(run / "reward_model" / "summary.json")["held_out"]
    return figures


def _curves(stage: Path) -> dict[str, list[float]]:
    """Curves of a stage, means over WIDTH steps. kl: nats per answer."""
    rows = read_lines(stage / "metrics.jsonl")
    kl = [r["kl/response"] if "kl/response" in r else r["kl_base"] * r["length/mean"] for r in rows]
    raw = {"kl": kl, "proxy": [r["reward/mean"] for r in rows], "gold": [r["watched/gold"] for r in rows]}
    n = len(rows) // WIDTH * WIDTH
    return {name: np.array(x[:n]).reshape(-1, WIDTH).mean(1).round(5).tolist() for name, x in raw.items()}


def verdict(measured: Sequence[Measured]) -> Verdict:
    """Holds when, for GRPO and for PPO: without the anchor gold falls from its best, the medium anchor ends with more
    gold than no anchor (both intervals above 0), and the proxy ends higher than at gold's best (in every seed)."""
    gold_fall = {k: effect([_gold_fall(m[f"{k}_none"]) for m in measured]) for k in KINDS}
    proxy_rise = {k: effect([_proxy_rise(m[f"{k}_none"]) for m in measured]) for k in KINDS}
    anchor_gain = {
        k: difference(_final_gold(measured, f"{k}_medium"), _final_gold(measured, f"{k}_none")) for k in KINDS
    }
    holds = all(e.positive for effects in (gold_fall, anchor_gain) for e in effects.values())
    holds &= all(min(e.each) > 0 for e in proxy_rise.values())
    more: dict[str, Effect] = {}
    for k, label in KINDS.items():
        more |= {f"{label} without anchor, fall of gold from its best": gold_fall[k]}
        more |= {f"{label} without anchor, rise of the proxy since then": proxy_rise[k]}
        more |= {f"{label}, gold at the end, beta 0.1 less beta 0": anchor_gain[k]}
        anchored_fall = effect([_gold_fall(m[f"{k}_medium"]) for m in measured])
        more |= {f"{label} at beta 0.1, fall of gold from its best": anchored_fall}
    peak = effect([max(p["gold"] for p in m["best_of_n"]) for m in measured])
    last = effect([m["best_of_n"][-1]["gold"] for m in measured])
    more |= {"best-of-n, gold at the best n less gold at the largest": difference(peak.each, last.each)}
    clauses = [
        f"{label} without an anchor loses {gold_fall[k].mean:.2f} of gold from its best while the proxy rises by "
        f"{proxy_rise[k].mean:.2f}; with beta 0.1 it ends {anchor_gain[k].text('+.2f')} higher"
        for k, label in KINDS.items()
    ]
    sentence = (
        f"{'; '.join(clauses)}. Best-of-n reaches {peak.mean:.2f} of gold at its best n and {last.mean:.2f} at n = "
        f"{measured[0]['best_of_n'][-1]['n']:.0f}, within {measured[0]['best_of_n'][-1]['kl']:.1f} nats."
    )
    return Verdict(holds, anchor_gain["grpo"], sentence, more, _table(measured))


def _gold_fall(curves: dict[str, list[float]]) -> float:
    """The fall of the gold reward from its best to its last value."""
    return max(curves["gold"]) - curves["gold"][-1]


def _proxy_rise(curves: dict[str, list[float]]) -> float:
    """The rise of the proxy reward since the gold reward was best."""
    return curves["proxy"][-1] - curves["proxy"][int(np.argmax(curves["gold"]))]


def _final_gold(measured: Sequence[Measured], stage: str) -> list[float]:
    """The last gold reward of a stage, one value a seed."""
    return [m[stage]["gold"][-1] for m in measured]


def _table(measured: Sequence[Measured]) -> list[list[str]]:
    rows = [["", "beta", "best gold", "gold at the end", "proxy then", "KL of an answer then"]]
    for kind, label in KINDS.items():
        for anchor, beta in ANCHORS.items():
            curves = [m[f"{kind}_{anchor}"] for m in measured]
            best = np.mean([max(c["gold"]) for c in curves])
            ends = [np.mean([c[name][-1] for c in curves]) for name in ("gold", "proxy", "kl")]
            rows.append([label, f"{beta:g}", f"{best:.2f}", f"{ends[0]:.2f}", f"{ends[1]:.2f}", f"{ends[2]:.1f}"])
    for i, point in enumerate(measured[0]["best_of_n"]):
        gold, proxy = (np.mean([m["best_of_n"][i][name] for m in measured]) for name in ("gold", "reward"))
        rows.append([f"best of {point['n']:.0f}", "", "", f"{gold:.2f}", f"{proxy:.2f}", f"{point['kl']:.1f}"])
    return rows


def draw(measured: Sequence[Measured], figure: Figure) -> None:
    """Panels GRPO, PPO and best-of-n: gold and proxy reward against the square root of the KL, a line for each seed."""
    axes = figure.subplots(1, 3, sharey=True)
    colours = (COLOURS[1], COLOURS[3], COLOURS[2], COLOURS[0])
    for ax, (kind, label) in zip(axes, KINDS.items(), strict=False):
        for (anchor, beta), colour in zip(ANCHORS.items(), colours, strict=True):
            for i, m in enumerate(measured):
                curves = m[f"{kind}_{anchor}"]
                name = f"beta {beta:g}" if i == 0 else None
                _plot_rewards(ax, curves["kl"], curves["gold"], curves["proxy"], colour, name)
        ax.set_title(label, loc="left", fontsize=9.5)
        ax.legend(frameon=False, fontsize=7, loc="lower right")
    for m in measured:
        points: Any = m["best_of_n"]
        kl, gold, proxy = ([p[name] for p in points] for name in ("kl", "gold", "reward"))
        _plot_rewards(axes[2], kl, gold, proxy, INK, None)
    axes[2].set_title("best of n = 1 to 64", loc="left", fontsize=9.5)
    axes[2].plot([], [], "-", color=SOFT, label="gold")
    axes[2].plot([], [], ":", color=SOFT, label="proxy")
    axes[2].legend(frameon=False, fontsize=7, loc="lower right")
    for ax in axes:
        ax.set_xlabel("square root of the KL of an answer, nats", fontsize=8)
    axes[0].set_ylabel("reward")


def _plot_rewards(
    axes: Axes, kl: Sequence[float], gold: Sequence[float], proxy: Sequence[float], colour: str, label: str | None
) -> None:
    """Plots gold (solid) and proxy (dotted) reward. kl: nats per answer."""
    distance = np.sqrt(np.maximum(0.0, kl))
    axes.plot(distance, gold, "-", color=colour, linewidth=1.4, label=label)
    axes.plot(distance, proxy, ":", color=colour, linewidth=1.1)


EXPERIMENT = Experiment(
    name="overoptimisation",
    claim=(
        "Without a KL anchor to the reference, a policy trained on a learned reward first gains gold reward and then "
        "loses it while the learned reward keeps rising; with the KL in the reward, the gold reward holds (Gao et al. "
        "2022, arXiv:2210.10760)"
    ),
    measure=measure,
    verdict=verdict,
    draw=draw,
    size=(11.0, 3.6),
)
