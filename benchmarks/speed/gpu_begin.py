"""What comes before the sides on a GPU, as a process of its own so that the command holds none of its memory: the
models are made and the GPU's limits are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.speed import gpu_limits, gpu_models
from benchmarks.speed.gpu_sizes import SIZES


def run(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    sizes = options["sizes"]
    for size in sizes:
        gpu_models.make(work, Path(options["inputs"]), size, options["device"], set(options["wanted"]))
    return gpu_limits.measure([SIZES[size] for size in sizes], options["device"])
