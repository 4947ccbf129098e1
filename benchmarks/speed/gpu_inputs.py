"""Makes the inputs of the comparison on a GPU: token ids and a tokenizer, small enough to be carried to that machine.

    python -m benchmarks.speed.gpu_inputs --model SmolLM2-135M-Instruct.gguf --data DIRECTORY --to DIRECTORY

The rows are those of `prepare.py`, more of them, and `sft_long.jsonl`: rows joined until they have 4096 tokens.
The models have random weights and are made where they are used (`gpu_models.py`); of the real one only the tokenizer is
needed, all of whose ids they know.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.speed import rows
from benchmarks.speed.prepare import Counts, inputs

from ladder.models.load import load_model

COUNTS = Counts(rows=128, pairs=96, prompts=128)
LONG_ROWS, LONG = 16, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="SmolLM2-135M-Instruct, a GGUF file or a directory")
    parser.add_argument("--data", type=Path, required=True, help="the data sets (benchmarks/README.md)")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    loaded = load_model(args.model)
    inputs(args.to, loaded, args.data, "", COUNTS)
    rows.write(args.to / "sft_long.jsonl", joined(rows.read(args.to / "sft.jsonl"), LONG_ROWS, LONG))
    loaded.tokenizer.save_pretrained(args.to)
    for path in sorted(args.to.iterdir()):
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.name}")


def joined(short: list[dict[str, Any]], n: int, length: int) -> Iterator[dict[str, Any]]:
    """n rows of `length` tokens: short ones end to end, over and over. All but the first prompt is trained."""
    source = itertools.cycle(short)
    for _ in range(n):
        first = next(source)
        prompt, rest = first["prompt_ids"], list(first["completion_ids"])
        while len(prompt) + len(rest) < length:
            row = next(source)
            rest += row["prompt_ids"] + row["completion_ids"]
        yield {"prompt_ids": prompt, "completion_ids": rest[: length - len(prompt)]}


if __name__ == "__main__":
    main()
