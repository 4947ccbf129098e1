"""Chooses the kernels for the operations between matrix products: C on the CPU, Triton on CUDA, or none.

Both modules have the functions of `layers.py` under the same names. Where neither supports a tensor, the callers use
torch's operators.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ladder.kernels import layers
from ladder.kernels.library import wanted

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that the Triton kernels support."""


@cache
def tiled() -> Any:
    """The module of Triton kernels, or None where `untiled` gives a reason.

    In addition to the functions of `layers.py` it has `gathered`, and for decoding `enter`, `attend` and `draw`.
    """
    return import_module("ladder.kernels.triton_layers") if untiled() is None else None


def untiled() -> str | None:
    """The reason why there are no Triton kernels, as a message to the user; None if there are.

    Triton comes with torch's builds for CUDA, and needs a C compiler for the code that launches its kernels.
    """
    if find_spec("triton") is None:
        return "Triton is not installed, so torch's operators are used; install it with pip install triton"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "there is no C compiler (cc), which Triton needs, so torch's operators are used; install gcc or clang"
    return None


def on(device: torch.device) -> bool:
    """Whether the Triton kernels are used on this device."""
    return device.type == "cuda" and wanted() and tiled() is not None


def kernels(x: Tensor) -> Any:
    """The module of kernels for tensors of this device and dtype, or None."""
    if x.device.type == "cuda":
        return tiled() if on(x.device) and x.dtype in TYPES else None
    return layers if layers.usable(x) else None


def must(x: Tensor) -> Any:
    """The module of kernels for tensors of this device and dtype, which must exist."""
    module = kernels(x)
    assert module is not None
    return module
