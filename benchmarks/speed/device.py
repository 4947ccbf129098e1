"""The clock and the memory of the device that a side runs on: work on a GPU is over only when it says so."""

from __future__ import annotations

import time
from typing import Any

import torch


def now(device: torch.device | str) -> float:
    """The time at which everything asked of the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def held(device: torch.device | str) -> dict[str, float]:
    """The most of a GPU's memory that tensors took so far; of a processor nothing: the process is measured there."""
    if torch.device(device).type != "cuda":
        return {}
    return {"gpu_gb": torch.cuda.max_memory_allocated(device) / 2**30}


def peak() -> dict[str, float]:
    """Of a process that used a GPU: the most that its tensors took, and what was reserved for them."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return {}
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"gpu_peak_gb": allocated / 2**30, "gpu_reserved_gb": reserved / 2**30}


def name(options: dict[str, Any]) -> str:
    """The device that a side was told to run on."""
    return options.get("device", "cpu")
