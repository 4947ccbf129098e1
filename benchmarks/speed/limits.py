"""What the processor can do, measured in the same run: matrix products in both precisions and reading memory.

The limit is the fastest of a few shapes, in torch, at as many threads as the workloads have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

SHAPES = ((1024, 1024, 1024), (1536, 1536, 1536), (2048, 2048, 2048), (2048, 576, 1536), (4096, 576, 1536))
"""Rows, inner, columns: square ones, and the largest of a small model's layers."""
READ = 1 << 28  # bytes


def run(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    seconds = options["budget"]
    made: dict[str, Any] = {"threads": torch.get_num_threads(), "gemm": {}}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        each = {"x".join(map(str, shape)): gemm(shape, dtype, seconds) for shape in SHAPES}
        made["gemm"][name] = each
        made[f"{name}_gflops"] = max(each.values())
    made["read_gb_s"] = reading(seconds)
    return made


def gemm(shape: tuple[int, int, int], dtype: torch.dtype, budget: float) -> float:
    """GFLOP/s of x W^T, the best of what fits into the budget."""
    rows, inner, columns = shape
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    return 2e-9 * rows * inner * columns / best(lambda: nn.functional.linear(x, weight), budget)


def reading(budget: float) -> float:
    """GB/s of reading what no cache holds."""
    x = torch.ones(READ // 4)
    return READ / 1e9 / best(lambda: x.sum(), budget)


def best(work: Callable[[], Any], budget: float) -> float:
    """The least seconds of a call."""
    work()
    begun, least = time.perf_counter(), float("inf")
    while time.perf_counter() - begun < budget:
        at = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - at)
    return least
