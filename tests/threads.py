"""How many threads torch and the kernels have in the tests: LADDER_TEST_THREADS, one where nothing is said.

On models this small threads only wait for each other, so one is fastest; `tests/everywhere.py` runs
the suite with four.
"""

from __future__ import annotations

import os

import torch

NUMBER = int(os.environ.get("LADDER_TEST_THREADS", "1"))


def settle() -> None:
    """This process has that many, whatever a test before set."""
    torch.set_num_threads(NUMBER)
