"""Memory in large pages, so that a kernel that reads all of it needs no address translation every 4 kB.

madvise requests large pages; the system may decline, which costs speed only.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

PAGE = 1 << 21
MADV_HUGEPAGE = 14


def empty(numbers: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised tensor [numbers], in large pages if it is large enough for them and the system grants them."""
    x = torch.empty(numbers, dtype=dtype)
    if x.nbytes >= 2 * PAGE and sys.platform == "linux":
        start = -(-x.data_ptr() // PAGE) * PAGE
        end = (x.data_ptr() + x.nbytes) // PAGE * PAGE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_HUGEPAGE)
    return x
