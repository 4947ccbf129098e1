"""Which kernels compute what stands between matrix products: C on the processor, Triton on CUDA, or none.

Both have the functions of `layers.py` under the same names; where neither fits, torch's operators do the work.
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
"""Those that the Triton kernels know."""


@cache
def tiled() -> Any:
    """The Triton kernels; None where Triton (which torch's builds for CUDA bring) or a C compiler is missing: Triton
    compiles what starts its kernels.

    Beside what `layers.py` has: `gathered`, and for decoding `enter`, `attend` and `draw`."""
    return import_module("ladder.kernels.triton_layers") if untiled() is None else None


def untiled() -> str | None:
    """Why there are no kernels for CUDA, in a sentence; None if there are."""
    if find_spec("triton") is None:
        return "Triton is not installed, so general operators are used; pip install triton mends it"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "there is no C compiler (cc), which Triton needs, so general operators are used; gcc or clang mends it"
    return None


def on(device: torch.device) -> bool:
    """Whether there are kernels of Triton's for it."""
    return device.type == "cuda" and wanted() and tiled() is not None


def kernels(x: Tensor) -> Any:
    """The module for tensors of this one's kind, or None."""
    if x.device.type == "cuda":
        return tiled() if on(x.device) and x.dtype in TYPES else None
    return layers if layers.usable(x) else None


def must(x: Tensor) -> Any:
    """The same, where it is known that there is one."""
    found = kernels(x)
    assert found is not None
    return found
