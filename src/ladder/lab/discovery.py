"""Tests whether DPO can learn a strategy that occurs on neither side of its pairs, as rejection sampling and GRPO can.

In the built-in world the winning strategy is to work step by step; the base model does so in about one answer of seven.
Pairs of two answers without working ("off-hand") contain none of it, however accurate their labels. Rejection sampling
and GRPO start from the same base model with the same judge and select from its samples. The control is DPO on pairs of
any two answers: the same loss on other pairs. The claim is stated by Tajwar et al. 2024 (arXiv:2404.14367, on-policy
sampling and negative gradients) and Xu et al. 2024 (arXiv:2404.10719, DPO and PPO).

Left out: online DPO, which would select from the policy's samples as the others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladder.base.files import read_json
from ladder.lab.budget import drawn_tokens, trained_tokens
from ladder.lab.experiment import Experiment, Measured, Verdict
from ladder.lab.stats import difference, effect
from ladder.report.figure import COLOURS, SOFT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROADS = {
    "base": ("base",),
    "dpo_offhand": ("pairs_offhand", "dpo_offhand"),
    "dpo_all": ("pairs_all", "dpo_all"),
    "rejection": ("harvest", "rejection"),
    "grpo": ("grpo",),
}
"""Training route -> its stages, whose tokens are its cost; the last stage trains the evaluated model."""
WORDS = {
    "base": "base",
    "dpo_offhand": "DPO, off-hand pairs",
    "dpo_all": "DPO, any pairs",
    "rejection": "rejection sampling",
    "grpo": "GRPO",
}
KS = (1, 2, 4, 8, 16, 32)


def measure(run: Path) -> Measured:
    """{route: {"accuracy", "greedy", "length", "worked", "pass@1" ..., "drawn", "trained"}}, costs in tokens."""
    return {road: _route_figures(run, stages) for road, stages in ROADS.items()}


def _route_figures(run: Path, stages: Sequence[str]) -> dict[str, Any]:
    figures = read_json(run / stages[-1] / "summary.json")["easy"]
    return {
        "accuracy": figures["accuracy"],
        "greedy": figures["greedy"]["accuracy"],
        "length": figures["length"],
        "worked": figures["worked"],
        **{f"pass@{k}": figures[f"pass@{k}"] for k in KS},
        "drawn": sum(drawn_tokens(run / s) for s in stages),
        "trained": sum(trained_tokens(run / s) for s in stages),
    }


def verdict(measured: Sequence[Measured]) -> Verdict:
    """Holds when rejection sampling and GRPO beat DPO on off-hand pairs in accuracy, and DPO on off-hand pairs does not
    raise the base's share of worked answers."""

    def each(road: str, figure: str = "accuracy") -> list[float]:
        """A figure of a route, one value a seed."""
        return [m[road][figure] for m in measured]

    gap = difference(each("grpo"), each("dpo_offhand"))
    selects = difference(each("rejection"), each("dpo_offhand"))
    worked = difference(each("dpo_offhand", "worked"), each("base", "worked"))
    holds = gap.positive and selects.positive and not worked.positive
    more = {
        "rejection sampling - DPO off-hand, accuracy": selects,
        "DPO off-hand - base, accuracy": difference(each("dpo_offhand"), each("base")),
        "DPO off-hand - base, worked": worked,
        "DPO any pairs - DPO off-hand, accuracy": difference(each("dpo_all"), each("dpo_offhand")),
        "DPO off-hand - base, pass@8": difference(each("dpo_offhand", "pass@8"), each("base", "pass@8")),
    }
    ends = {road: f"{_mean(each(road)):.0%} right and {_mean(each(road, 'worked')):.0%} worked" for road in ROADS}
    sentence = (
        f"From a base at {ends['base']}, DPO on pairs of two off-hand answers ends at {ends['dpo_offhand']}, rejection "
        f"sampling at {ends['rejection']}, GRPO at {ends['grpo']} ({100 * gap.mean:+.0f} points right, 95% interval "
        f"{100 * gap.low:+.0f} to {100 * gap.high:+.0f}). The same DPO on pairs of any answers: {ends['dpo_all']}."
    )
    return Verdict(holds, gap, sentence, more, _table(measured))


def _mean(values: Sequence[float]) -> float:
    return effect(values).mean


def _table(measured: Sequence[Measured]) -> list[list[str]]:
    rows = [["", "right", "greedy", "worked", "tokens", "pass@8", "sampled", "trained"]]
    for road, label in WORDS.items():
        shares = [_mean([m[road][f] for m in measured]) for f in ("accuracy", "greedy", "worked")]
        length = _mean([m[road]["length"] for m in measured])
        pass_at_8 = _mean([m[road]["pass@8"] for m in measured])
        costs = [_mean([m[road][f] for m in measured]) for f in ("drawn", "trained")]
        share_cells, cost_cells = [f"{x:.1%}" for x in shares], [f"{c / 1000:,.0f}k" for c in costs]
        rows.append([label, *share_cells, f"{length:.1f}", f"{pass_at_8:.1%}", *cost_cells])
    return rows


def draw(measured: Sequence[Measured], figure: Figure) -> None:
    """Panels: accuracy and share of worked answers, answer length, pass@k; dots are seeds."""
    right, length, passed = figure.subplots(1, 3, width_ratios=[1.15, 1, 1])
    colours = dict(zip(ROADS, (SOFT, COLOURS[1], COLOURS[3], COLOURS[2], COLOURS[0]), strict=True))
    positions = range(len(ROADS))
    for axes, figures, label in ((right, ("accuracy", "worked"), "%"), (length, ("length",), "tokens")):
        for shift, name in enumerate(figures):
            scale = 1 if name == "length" else 100
            for i, road in enumerate(ROADS):
                values = [scale * m[road][name] for m in measured]
                x = i + (0.34 * shift - 0.17 if len(figures) == 2 else 0)
                axes.bar(x, _mean(values), 0.32, color=colours[road], alpha=0.45 if shift else 0.9)
                axes.plot([x] * len(values), values, ".", color="black", markersize=3)
        axes.set_xticks(positions, [w.replace(", ", "\n").replace(" sampling", "\nsampling") for w in WORDS.values()])
        axes.tick_params(axis="x", labelsize=6.5)
        axes.set_ylabel(label)
    right.set_title("right (full), worked out (pale)", loc="left", fontsize=9.5)
    length.set_title("length of an answer", loc="left", fontsize=9.5)
    for road, label in WORDS.items():
        means = [100 * _mean([m[road][f"pass@{k}"] for m in measured]) for k in KS]
        passed.plot(KS, means, "o-", color=colours[road], markersize=3, label=label)
    chance = [100 * (1 - 0.9**k) for k in KS]  # an answer is one of ten digits
    passed.plot(KS, chance, "--", color=SOFT, linewidth=1, label="chance, of ten digits")
    passed.set_xscale("log", base=2)
    passed.set_xticks(KS, [str(k) for k in KS])
    passed.set_title("pass@k, %", loc="left", fontsize=9.5)
    passed.set_xlabel("k")
    passed.legend(frameon=False, fontsize=6.5)


EXPERIMENT = Experiment(
    name="discovery",
    claim=(
        "DPO does not learn a winning strategy that both sides of its pairs lack, while rejection sampling and GRPO "
        "learn it from the same base model at a similar budget (after Tajwar et al. 2024, arXiv:2404.14367, and Xu et "
        "al. 2024, arXiv:2404.10719)"
    ),
    measure=measure,
    verdict=verdict,
    draw=draw,
    size=(11.0, 3.4),
)
