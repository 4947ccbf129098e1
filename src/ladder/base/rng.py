"""Counter-based random streams: each is a function of (seed, names of its purpose, counters such as the step).

A checkpoint needs no generator state: step 17 has the same stream in a resumed run as in an uninterrupted one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def key(seed: int, *parts: int | str) -> int:
    """A 63-bit key from a seed and the purpose's names and counters."""
    text = "/".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *parts: int | str) -> torch.Generator:
    """A CPU generator of the stream `key(seed, *parts)`."""
    import torch  # not at the top: tasks and rewards import this module and must not load torch

    return torch.Generator().manual_seed(key(seed, *parts))


def np_rng(seed: int, *parts: int | str) -> np.random.Generator:
    """A NumPy generator (Philox) of the stream `key(seed, *parts)`."""
    return np.random.Generator(np.random.Philox(key(seed, *parts)))
