"""A side's process that imports all it needs, waits for a word on its standard input, and then does its work.

    python -m benchmarks.speed.gate sft WORK RESULT '{"model": "base", ...}'
    python -m benchmarks.speed.gate benchmarks/peers/trl_sft.py WORK RESULT '{...}'

So the next side's imports, which take longer than a GPU's work, lie beside the one before, on another core. Nothing is
done on the GPU until the gate opens.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.speed import side


def main(program: str, work: str, result: str, options: str) -> None:
    run = script(program) if program.endswith(".py") else ours(program)
    if not sys.stdin.readline():
        raise SystemExit("nobody is there any more who would want the result")
    run(work, result, options)


def ours(program: str) -> Callable[[str, str, str], None]:
    importlib.import_module(f"benchmarks.speed.{program}")
    return lambda *rest: side.main(program, *rest)


def script(path: str) -> Callable[[str, str, str], None]:
    """A peer's: its imports happen here, and its main is called as from a command line."""
    sys.path.insert(0, str(Path(path).parent))
    module = importlib.import_module(Path(path).stem)

    def run(*rest: str) -> None:
        sys.argv = [path, *rest]
        module.main()

    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
