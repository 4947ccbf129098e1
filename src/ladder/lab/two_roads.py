"""DPO against RLHF on the same pairs: DPO, or a reward model optimised by GRPO or PPO, in and out of distribution.

"Inside": problems as in the pairs, with 3-6 steps. "Outside": longer problems (8-12 steps) and shorter ones (1-2). Each
training route ("road") is run at three strengths of its KL anchor; the strength with the most gold reward *inside*
represents the route, so that the outside problems select nothing. The literature finds DPO worse outside (Kirk et al.
2023, arXiv:2310.06452; Xu et al. 2024, arXiv:2404.10719), by 3 to 7%.

Left out: pairs and rewards of another domain altogether; the built-in world has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ladder.base.files import read_json
from ladder.lab.experiment import Experiment, Measured, Verdict
from ladder.lab.stats import difference, effect
from ladder.report.figure import COLOURS, SOFT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROADS = {"dpo": "DPO", "grpo": "reward model, GRPO", "ppo": "reward model, PPO"}
ANCHORS = ("loose", "middle", "tight")
SETS = {"inside": "3-6 steps, as the pairs", "longer": "8-12 steps", "shorter": "1-2 steps"}
OUTSIDE = ("longer", "shorter")


def measure(run: Path) -> Measured:
    """{stage: {set: {"gold", "right", "length"}}} of the base and of every route at every anchor."""
    return {stage: _stage_figures(run / stage) for stage in ("base", *(f"{r}_{a}" for r in ROADS for a in ANCHORS))}


def _stage_figures(stage: Path) -> dict[str, Any]:
    summary = read_json(stage / "summary.json")
    return {
        name: {"gold": f["accuracy"], "right": f["score/right"], "length": f["length"]}
        for name, f in ((name, summary[name]) for name in SETS)
    }


def chosen(one: Measured, road: str) -> dict[str, Any]:
    """The figures of a route at the anchor with the most gold reward inside. one: the figures of one seed."""
    return max((one[f"{road}_{a}"] for a in ANCHORS), key=lambda figures: figures["inside"]["gold"])


def verdict(measured: Sequence[Measured]) -> Verdict:
    """Holds when DPO has less gold reward outside than the better of GRPO and PPO, by more than inside."""

    def each(road: str, name: str) -> list[float]:
        """The gold reward of a route on a set, one value a seed."""
        return [(m["base"] if road == "base" else chosen(m, road))[name]["gold"] for m in measured]

    def outside(road: str) -> list[float]:
        """The mean gold reward of a route on the outside sets, one value a seed."""
        return [float(np.mean(x)) for x in zip(*(each(road, name) for name in OUTSIDE), strict=True)]

    best = max(("grpo", "ppo"), key=lambda road: np.mean(each(road, "inside")))
    gap = difference(outside(best), outside("dpo"))
    inside = difference(each(best, "inside"), each("dpo", "inside"))
    further = difference(gap.each, inside.each)
    share = effect([g / d for g, d in zip(gap.each, outside("dpo"), strict=True)])
    holds = gap.positive and further.positive
    more = {
        f"{ROADS[best]} - DPO, inside": inside,
        f"{ROADS[best]} - DPO, outside less inside": further,
        f"{ROADS[best]} - DPO, outside, as a share of DPO's": share,
    }
    pairs = [(r, name) for r in ROADS for name in SETS]
    more |= {f"{ROADS[r]} - base, {name}": difference(each(r, name), each("base", name)) for r, name in pairs}
    sentence = (
        f"With each method at its best anchor inside, {best.upper()} on the reward model and DPO differ by "
        f"{inside.text('+.2f')} in gold reward inside and by {gap.text('+.2f')} outside ({share.mean:+.0%} of DPO's "
        "there)."
    )
    return Verdict(holds, gap, sentence, more, _table(measured))


def _table(measured: Sequence[Measured]) -> list[list[str]]:
    rows = [["", *(f"gold, {words}" for words in SETS.values()), "right, longer", "tokens, longer"]]
    stages = [("base", "base", [m["base"] for m in measured])]
    for road, label in ROADS.items():
        stages += [(road, f"{label}, {a}", [m[f"{road}_{a}"] for m in measured]) for a in ANCHORS]
        stages.append((road, f"{label}, best inside", [chosen(m, road) for m in measured]))
    for _, label, seeds in stages:
        gold = [f"{np.mean([figures[name]['gold'] for figures in seeds]):.2f}" for name in SETS]
        right, length = (np.mean([figures["longer"][key] for figures in seeds]) for key in ("right", "length"))
        rows.append([label, *gold, f"{right:.0%}", f"{length:.1f}"])
    return rows


def draw(measured: Sequence[Measured], figure: Figure) -> None:
    """A panel for each set: the gold reward of the base and of every route at its chosen anchor; dots are seeds."""
    axes = figure.subplots(1, len(SETS), sharey=True)
    colours = (SOFT, COLOURS[1], COLOURS[0], COLOURS[2])
    for ax, (name, title) in zip(axes, SETS.items(), strict=True):
        for i, (road, colour) in enumerate(zip(("base", *ROADS), colours, strict=True)):
            values = [(m["base"] if road == "base" else chosen(m, road))[name]["gold"] for m in measured]
            ax.bar(i, np.mean(values), 0.6, color=colour)
            ax.plot([i] * len(values), values, ".", color="black", markersize=4)
        ax.set_xticks(range(4), ["base", "DPO", "GRPO", "PPO"])
        ax.set_title(title, loc="left", fontsize=9.5)
    axes[0].set_ylabel("gold reward, best anchor inside")


EXPERIMENT = Experiment(
    name="two_roads",
    claim=(
        "From the same pairs, DPO does worse than a reward model and reinforcement learning on what the pairs do not "
        "cover (Kirk et al. 2023, arXiv:2310.06452; Xu et al. 2024, arXiv:2404.10719)"
    ),
    measure=measure,
    verdict=verdict,
    draw=draw,
    size=(10.0, 3.2),
)
