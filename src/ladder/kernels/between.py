"""Which kernels compute what stands between matrix products: C on the processor, Triton on CUDA, or none.

Both have the functions of `layers.py` under the same names; where neither fits, torch's operators do the work.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ladder.kernels import layers
from ladder.kernels.library import wanted

TYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def tiled() -> Any:
    """The Triton kernels; None where Triton is not installed, which torch's builds for CUDA bring.

    Beside what `layers.py` has: `gathered`, and for decoding `enter`, `attend` and `draw`."""
    return import_module("ladder.kernels.tiled") if find_spec("triton") else None


def kernels(x: Tensor) -> Any:
    """The module for tensors of this one's kind, or None."""
    if x.device.type == "cuda":
        return tiled() if wanted() and x.dtype in TYPES else None
    return layers if layers.usable(x) else None


def must(x: Tensor) -> Any:
    """The same, where it is known that there is one."""
    found = kernels(x)
    assert found is not None
    return found
