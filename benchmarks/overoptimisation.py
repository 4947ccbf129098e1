"""Proxy and gold against the distance from the base, with and without the anchor, over seeds.

    for s in 0 1 2; do ladder run overoptimisation --seed $s --out runs/over-$s; done
    python benchmarks/overoptimisation.py runs/over-0 runs/over-1 runs/over-2 --write docs/techniques

As Gao et al. 2022 (arXiv:2210.10760) draw it: rewards over the square root of the KL of an answer. Prints a table: for
each beta the gold reward at its best and at the end, and what the proxy said then.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from ladder.log import read_lines

STAGES = {"beta_0": "no anchor", "beta_005": "beta 0.05", "beta_02": "beta 0.2"}
LAST = 10
"""Steps that the end is averaged over."""


def curve(run: Path, stage: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(KL of an answer, proxy, gold), one a step."""
    rows = read_lines(run / stage / "metrics.jsonl")
    kl = [r.get("kl/response", r.get("kl_base", 0.0) * r["length/mean"]) for r in rows]
    return np.array(kl), np.array([r["reward/mean"] for r in rows]), np.array([r["watched/gold"] for r in rows])


def smooth(x: np.ndarray, width: int = 5) -> np.ndarray:
    return np.convolve(np.pad(x, width // 2, mode="edge"), np.ones(width) / width, "valid")


def table(runs: list[Path]) -> list[str]:
    lines = ["| | seed | best gold (5-step mean) | gold at the end | proxy then | KL then |"]
    lines += ["|---|---|---|---|---|---|"]
    for stage, name in STAGES.items():
        for i, run in enumerate(runs):
            kl, proxy, gold = curve(run, stage)
            end = [x[-LAST:].mean() for x in (gold, proxy, kl)]
            lines.append(f"| {name} | {i} | {smooth(gold).max():.2f} | {end[0]:.2f} | {end[1]:.2f} | {end[2]:.1f} |")
    return lines


def draw(runs: list[Path], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "overoptimisation"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(STAGES), figsize=(12, 3.6), layout="constrained", sharey=True)
    for ax, (stage, name) in zip(axes, STAGES.items(), strict=True):
        for run in runs:
            kl, proxy, gold = curve(run, stage)
            x = [math.sqrt(max(0.0, k)) for k in smooth(kl)]
            ax.plot(x, smooth(proxy), color="#c2570c", linewidth=1.3, label="proxy" if run is runs[0] else None)
            ax.plot(x, smooth(gold), color="#1d4ed8", linewidth=1.3, label="gold" if run is runs[0] else None)
        ax.set_title(name, loc="left", fontsize=10)
        ax.set_xlabel("square root of the KL of an answer, nats")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.2)
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    print("\n".join(table(args.runs)))
    if args.write:
        (args.write / "overoptimisation.md").write_text("\n".join(table(args.runs)) + "\n", encoding="utf-8")
        draw(args.runs, args.write / "overoptimisation.svg")


if __name__ == "__main__":
    main()
