"""What tests of several files share."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's package is imported: no test waits for a network
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels run on the processor

sys.path.append(str(Path(__file__).resolve().parents[1]))  # benchmarks is a package of the tree, not of the program

import small_run
import threads


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny r1 recipe. To be read only: `copy` is for tests that change it."""
    threads.settle()
    out = tmp_path_factory.mktemp("small") / "r1"
    small_run.run(out)
    return out


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(small, tmp_path / "r1"))
