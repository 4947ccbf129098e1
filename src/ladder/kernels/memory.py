"""Memory in large pages: what a kernel reads from end to end should not cost an address translation every 4 kB.

The system is asked (madvise), and may decline; nothing depends on it but speed.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

PAGE = 1 << 21
MADV_HUGEPAGE = 14


def empty(numbers: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised [numbers], in large pages where they are worth it and the system grants them."""
    x = torch.empty(numbers, dtype=dtype)
    if x.nbytes >= 2 * PAGE and sys.platform == "linux":
        start = -(-x.data_ptr() // PAGE) * PAGE
        end = (x.data_ptr() + x.nbytes) // PAGE * PAGE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_HUGEPAGE)
    return x
