"""Draws metrics of a run's stages over their steps, for the documentation.

    python benchmarks/curves.py runs/gsm8k_smollm2 docs/figures/gsm8k_smollm2.svg loss reward/mean length/mean
    python benchmarks/curves.py runs/r1 docs/figures/r1_loss.svg pretrain:loss sft:loss      (one stage only)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

from ladder.base.jsonl import read_lines
from ladder.pipeline.lineage import stages

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "curves"

import matplotlib.pyplot as plt  # noqa: E402  the backend comes first

Rows = dict[str, list[dict[str, Any]]]


def of(rows: Rows, asked: str) -> dict[str, list[tuple[int, float]]]:
    """The points of each stage for one panel; `asked` is a metric's name, or STAGE:NAME."""
    stage, colon, key = asked.rpartition(":")
    chosen = {stage: rows[stage]} if colon else rows
    points = {name: [(r["step"], r[key]) for r in each if r.get(key) is not None] for name, each in chosen.items()}
    return {name: each for name, each in points.items() if len(each) > 1}


def main(run: Path, out: Path, keys: list[str]) -> None:
    names = [s["name"] for s in stages(run) if (run / s["name"] / "metrics.jsonl").exists()]
    rows = {name: read_lines(run / name / "metrics.jsonl") for name in names}
    shown = {key: found for key in keys if (found := of(rows, key))}
    figure, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.2), layout="constrained", squeeze=False)
    for ax, (key, curves) in zip(axes[0], shown.items(), strict=True):
        for name, points in curves.items():
            dots = "o" if len(points) < 60 else ""
            ax.plot(*zip(*points, strict=True), label=name, linewidth=1.2, marker=dots, markersize=2.5)
        ax.set_title(key, loc="left", fontsize=10)
        ax.set_xlabel("step")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.2)
        if len(curves) > 1:
            ax.legend(fontsize=8, frameon=False)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
