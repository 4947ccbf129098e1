"""Our side of one workload, as a process of its own.

python -m benchmarks.speed.side sft WORK RESULT '{"model": "base", ...}'
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch
import transformers
from benchmarks.speed import device


def main(program: str, work: str, result: str, options: str) -> None:
    module = importlib.import_module(f"benchmarks.speed.{program}")
    made = module.run(Path(work), json.loads(options))
    made |= device.peak()
    made["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    Path(result).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
