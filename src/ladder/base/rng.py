"""Counter-based random streams: every draw is a function of (seed, what it is for, where it stands).

Nothing has to be saved to resume: the stream of step 17 is the stream of step 17 however the run came there.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def key(seed: int, *parts: int | str) -> int:
    """A 63-bit key from a seed and the names and counters of what it is for."""
    text = "/".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *parts: int | str) -> torch.Generator:
    import torch  # here: tasks and rewards import this module and no torch

    return torch.Generator().manual_seed(key(seed, *parts))


def np_rng(seed: int, *parts: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key(seed, *parts)))
