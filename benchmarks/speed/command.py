"""What the commands of this package have in common: arguments for the inputs, where results go, what is said."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DATA = ("instructions_175.jsonl", "hh_harmless_pairs.jsonl", "gsm8k_train.jsonl")


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", default=os.environ.get("LADDER_BENCH_MODEL"), help="or LADDER_BENCH_MODEL")
    made.add_argument("--data", type=Path, default=os.environ.get("LADDER_BENCH_DATA"), help="or LADDER_BENCH_DATA")
    made.add_argument("--work", type=Path, default=Path("runs/speed"), help="inputs, logs (default: runs/speed)")
    made.add_argument("--name", default=datetime.date.today().isoformat(), help="of the results (default: the date)")
    return made


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program with a sentence where something is missing. Reads `threads` and `cores` too."""
    if not args.model or not Path(args.model).exists():
        parser.error("--model (or LADDER_BENCH_MODEL): give SmolLM2-135M-Instruct as a GGUF file or a directory")
    missing = [name for name in DATA if not args.data or not (args.data / name).is_file()]
    if missing:
        parser.error(f"--data (or LADDER_BENCH_DATA): give the directory that holds {', '.join(missing)}")
    if max(args.threads) > len(args.cores):
        parser.error(f"--threads: {max(args.threads)} threads on {len(args.cores)} cores")
    if shutil.which("taskset") is None:
        parser.error("taskset (util-linux) is needed to pin the sides to their cores")


def write(path: Path, document: dict[str, Any], markdown: str) -> None:
    """JSON at the path, Markdown beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(document, indent=1) + "\n")
    _replace(path.with_suffix(".md"), markdown)


def _replace(path: Path, text: str) -> None:
    """At once, so that an interruption leaves the old file or the new one."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def say(text: str) -> None:
    print(text, flush=True)
