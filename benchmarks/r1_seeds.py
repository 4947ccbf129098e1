"""Runs `ladder run r1` and its controls over seeds, checks the figures against targets, and writes them as a page.

    python benchmarks/r1_seeds.py                      # seeds 0 1 2 of r1
    python benchmarks/r1_seeds.py --controls --seeds 0 # its controls
    python benchmarks/r1_seeds.py --write docs/r1_results.md

Finished runs are not repeated (`ladder run` keeps them), so --write after the runs only collects their figures.
Seconds are each run's own; run nothing else on the machine while measuring.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladder.base.files import read_json

CONTROLS = ["more_raw_sft", "worked_sft", "rejection_from_base", "zero_continued", "five_percent_worked"]
MODELS = ["pretrain", "r1_zero", "harvest", "sft", "rl"]


def run_command(recipe: str, seed: int, out: Path, more: Sequence[str] = ()) -> dict[str, Any]:
    """Runs `ladder run` in a subprocess; returns the run's summary.json."""
    command = [sys.executable, "-m", "ladder.cli", "run", recipe, "--seed", str(seed), "--out", str(out), *more]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return read_json(out / "summary.json")


def lend(base: Path, out: Path) -> None:
    """Copies the base model of the seed's r1 run into a control's run; `ladder run` checks the stage's identity."""
    if (base / "pretrain").is_dir() and not out.exists():
        out.mkdir(parents=True)
        shutil.copytree(base / "pretrain", out / "pretrain")


def verdict(summary: dict[str, Any]) -> list[str]:
    """The targets that a seed's figures miss."""
    s = summary["stages"]
    base, zero, sft, rl = s["pretrain"], s["r1_zero"], s["sft"], s["rl"]
    wanted = {
        "base at most 35% on easy": base["easy"]["accuracy"] <= 0.35,
        "R1-Zero at least 96% on easy": zero["easy"]["accuracy"] >= 0.96,
        "R1-Zero's answers 2.5 times as long": zero["easy"]["length"] >= 2.5 * base["easy"]["length"],
        "R1-Zero mixes in an eighth or more": zero["easy"]["mixed"] >= 0.125,
        "SFT mixes in at most 1% of easy": sft["easy"]["mixed"] <= 0.01,
        "SFT mixes in at most 3% of hard": sft["hard"]["mixed"] <= 0.03,
        "RL at least 98% on easy": rl["easy"]["accuracy"] >= 0.98,
        "RL at least 95% on hard": rl["hard"]["accuracy"] >= 0.95,
        "at most 240 seconds": summary["seconds"] <= 240,
    }
    return [name for name, holds in wanted.items() if not holds]


def table(summaries: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown table: one row per stage and evaluation set, one column per run."""
    names = list(summaries)
    rows = [f"| stage | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    stages = list(dict.fromkeys(s for summary in summaries.values() for s in summary["stages"]))
    for stage in stages:
        for kind in ("easy", "hard"):
            cells = [cell(summaries[n]["stages"].get(stage, {}).get(kind)) for n in names]
            rows.append(f"| {stage}, {kind} | {' | '.join(cells)} |")
    rows.append("| seconds | " + " | ".join(f"{summaries[n]['seconds']:.0f}" for n in names) + " |")
    return rows


def cell(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return ""
    greedy = f" ({figures['greedy']['accuracy']:.1%})" if "greedy" in figures else ""
    return f"{figures['accuracy']:.1%}{greedy}, {figures['length']:.1f} tokens, mixed {figures['mixed']:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--controls", action="store_true", help="the controls instead, from the same bases")
    parser.add_argument("--write", type=Path, help="gather r1 and controls into this file")
    args = parser.parse_args()
    names = [f"controls/{c}" for c in CONTROLS] if args.controls else ["r1"]
    failed = 0
    for seed in args.seeds:
        for recipe in names:
            out = args.out / f"{Path(recipe).name}-{seed}"
            if args.controls:
                lend(args.out / f"r1-{seed}", out)
            summary = run_command(recipe, seed, out)
            if recipe == "r1":
                missed = verdict(summary)
                failed += bool(missed)
                print(f"seed {seed}: {'everything holds' if not missed else '; '.join(missed)}", flush=True)
    if args.write:
        write(args.out, args.seeds, args.write)
    sys.exit(1 if failed else 0)


def write(out: Path, seeds: list[int], path: Path) -> None:
    """Writes the figures of all finished runs as one Markdown page."""
    r1 = {f"seed {s}": read_json(out / f"r1-{s}" / "summary.json") for s in seeds if (out / f"r1-{s}").exists()}
    lines = [
        "# What `ladder run r1` reaches",
        "",
        f"Made by `python benchmarks/r1_seeds.py` and `--controls` on {os.cpu_count()} cores ({platform.machine()}). "
        "1,024 problems each, sampled at temperature 1; greedy accuracy in brackets; tokens per answer; mixed: share "
        "of worked answers that use both notations. The rows of harvest (rejection sampling) describe the answers it "
        "kept.",
        "",
        *table(r1),
        "",
        "## Controls",
        "",
        "Each starts from the base model of the same seed and takes about as long as the R1 stages.",
    ]
    for control in CONTROLS:
        found = {f"seed {s}": out / f"{control}-{s}" / "summary.json" for s in seeds}
        found = {k: read_json(p) for k, p in found.items() if p.exists()}
        if found:
            lines += ["", f"### {control}", "", *table(found)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
