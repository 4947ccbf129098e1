"""Curves of a run for the docs: each stage's figures over its steps.

    python benchmarks/curves.py runs/gsm8k_smollm2 docs/figures/gsm8k_smollm2.svg loss reward/mean length/mean
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

from ladder.log import read_lines
from ladder.pipeline.lineage import stages

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "curves"

import matplotlib.pyplot as plt  # noqa: E402  the backend comes first


def main(run: Path, out: Path, keys: list[str]) -> None:
    names = [s["name"] for s in stages(run) if (run / s["name"] / "metrics.jsonl").exists()]
    rows = {name: read_lines(run / name / "metrics.jsonl") for name in names}
    shown = [k for k in keys if any(r.get(k) is not None for each in rows.values() for r in each)]
    figure, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.2), layout="constrained", squeeze=False)
    for ax, key in zip(axes[0], shown, strict=True):
        for name, each in rows.items():
            points = [(r["step"], r[key]) for r in each if r.get(key) is not None]
            if len(points) > 1:
                ax.plot(*zip(*points, strict=True), label=name, linewidth=1.4, marker="o", markersize=2.5)
        ax.set_title(key, loc="left", fontsize=10)
        ax.set_xlabel("step")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.2)
        ax.legend(fontsize=8, frameon=False)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
