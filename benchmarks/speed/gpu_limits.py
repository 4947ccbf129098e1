"""What a GPU can do, measured in the same run: matrix products in bfloat16 and in TF32, and copying within its memory.

The limit is the fastest of a few shapes: a large square, and the largest of the models' own layers at 8192 rows. Random
numbers, because products of zeros take less power and so run at a higher clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

ROWS, SQUARE, COPY = 8192, (8192, 8192, 8192), 1 << 31
SMALL_ROWS, SMALL_SQUARE, SMALL_COPY = 64, (128, 128, 128), 1 << 22
"""On a processor: to see that it runs."""
CALLS, GROUPS = 10, 5
"""Calls timed as one, and how often: the fastest group counts."""
Shape = tuple[int, int, int]


def measure(sizes: Iterable[dict[str, int]], device: str) -> dict[str, Any]:
    """TFLOP/s and GB/s; sizes: the models' (`gpu_sizes.py`)."""
    small = device == "cpu"
    shapes = [SMALL_SQUARE if small else SQUARE, *layers(sizes, SMALL_ROWS if small else ROWS)]
    made: dict[str, Any] = {"gemm": {}, "copy_gb_s": copying(SMALL_COPY if small else COPY, device)}
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32)):
        torch.set_float32_matmul_precision("high")
        each = {"x".join(map(str, shape)): product(shape, dtype, device) for shape in shapes}
        made["gemm"][name] = each
        made[f"{name}_tflops"] = max(each.values())
    return made | {"gpu": described(device)}


def layers(sizes: Iterable[dict[str, int]], rows: int) -> list[Shape]:
    """Rows, inner, columns of each model's way into and out of its widest layer."""
    found: list[Shape] = []
    for size in sizes:
        narrow, wide = size["hidden_size"], size["intermediate_size"]
        found += [(rows, narrow, wide), (rows, wide, narrow)]
    return found


def product(shape: Shape, dtype: torch.dtype, device: str) -> float:
    """TFLOP/s of x W^T."""
    rows, inner, columns = shape
    x, weight = (torch.randn(n, inner, device=device).to(dtype) for n in (rows, columns))
    return 2e-12 * rows * inner * columns / fastest(lambda: nn.functional.linear(x, weight), device)


def copying(size: int, device: str) -> float:
    """GB/s of a copy, bytes read and bytes written."""
    x = torch.randn(size // 4, device=device)
    y = torch.empty_like(x)
    return 2e-9 * size / fastest(lambda: y.copy_(x), device)


def fastest(work: Callable[[], Any], device: str) -> float:
    """The least seconds of a call."""
    for _ in range(3):
        work()
    return min(seconds(work, device) for _ in range(GROUPS)) / CALLS


def seconds(work: Callable[[], Any], device: str) -> float:
    """Of CALLS calls, by the GPU's own clock."""
    if device == "cpu":
        begun = time.perf_counter()
        for _ in range(CALLS):
            work()
        return time.perf_counter() - begun
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def described(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {"name": "a processor, to see that it runs", "memory_gb": 0.0, "cuda": None}
    found = torch.cuda.get_device_properties(0)
    return {"name": found.name, "memory_gb": round(found.total_memory / 2**30, 1), "cuda": torch.version.cuda}
