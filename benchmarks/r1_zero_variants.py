"""R1-Zero with each policy loss and advantage, from one base model: does each work, and how do the curves differ?

    python benchmarks/r1_zero_variants.py [--seed 0] [--out runs/variants] [--write docs/techniques]

Everything except loss and advantage is as in the r1 recipe, including the learning rate (chosen for PPO's clip), so
this shows that each variant works, not which is best when tuned. Prints a table and draws the curves.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from r1_seeds import lend, run_command

from ladder.base.files import read_json
from ladder.base.jsonl import read_lines

VARIANTS: dict[str, tuple[str, str]] = {
    "GRPO": ("{kind: PolicyClip, unit: sequence}", "group_std"),
    "DAPO": ("{kind: PolicyClip, clip_high: 0.28}", "group_std"),
    "Dr. GRPO": ("{kind: PolicyClip, unit: padded, length: 20}", "group_mean"),
    "GSPO": ("{kind: GSPO, clip_low: 0.02, clip_high: 0.02}", "group_std"),
    "CISPO": ("{kind: CISPO}", "group_std"),
    "REINFORCE": ("{kind: PolicyGradient, unit: padded, length: 20}", "group_mean"),
    "RLOO": ("{kind: PolicyGradient, unit: padded, length: 20}", "leave_one_out"),
    "REINFORCE++": ("{kind: PolicyClip}", "reinforce_pp"),
}
"""{name: (loss, advantage)}. PolicyGradient has no ratio, so it takes one optimiser step per batch of answers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, default=Path("runs/seeds/r1-0"), help="an r1 run of the seed")
    parser.add_argument("--out", type=Path, default=Path("runs/variants"))
    parser.add_argument("--write", type=Path, help="a directory for the figure")
    args = parser.parse_args()
    runs: dict[str, Path] = {}
    for name, (loss, advantage) in VARIANTS.items():
        out = args.out / name.lower().replace(" ", "").replace(".", "")
        lend(args.base, out)
        changes = [f"r1_zero.loss={loss}", f"r1_zero.advantage={advantage}"]
        changes += ["r1_zero.minibatches=1"] if "PolicyGradient" in loss else []
        run_command("r1", args.seed, out, ["--until", "r1_zero", *changes])
        runs[name] = out
    print("\n".join(table(runs)))
    if args.write:
        draw(runs, args.write / "r1_zero_variants.svg")


def table(runs: dict[str, Path]) -> list[str]:
    rows = ["| | right | greedy | tokens | mixed | last entropy | seconds |", "|---|---|---|---|---|---|---|"]
    for name, out in runs.items():
        summary = read_json(out / "r1_zero" / "summary.json")
        easy: dict[str, Any] = summary["easy"]
        last = read_lines(out / "r1_zero" / "metrics.jsonl")[-1]
        rows.append(
            f"| {name} | {easy['accuracy']:.1%} | {easy['greedy']['accuracy']:.1%} | {easy['length']:.1f} | "
            f"{easy['mixed']:.1%} | {last['entropy']:.3f} | {summary['seconds']:.0f} |"
        )
    return rows


def draw(runs: dict[str, Path], path: Path) -> None:
    """Draws reward, length and entropy over the steps, one line per variant."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "variants"
    import matplotlib.pyplot as plt

    panels = {"reward/mean": "share right", "length/mean": "tokens of an answer", "entropy": "entropy, nats a token"}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for ax, (key, title) in zip(axes, panels.items(), strict=True):
        for name, out in runs.items():
            rows = [r for r in read_lines(out / "r1_zero" / "metrics.jsonl") if r.get(key) is not None]
            ax.plot([r["step"] for r in rows], [r[key] for r in rows], label=name, linewidth=1.4)
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_xlabel("step")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.2)
    axes[-1].legend(fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
