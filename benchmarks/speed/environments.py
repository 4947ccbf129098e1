"""The peers' environments, made if they are missing, by scripts that anybody can run."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from benchmarks.speed.processes import ROOT
from benchmarks.speed.workload import Workload

SETUP = {"peers": "setup", "vllm": "setup_vllm"}


def provide(workloads: Iterable[Workload]) -> None:
    """Raises CalledProcessError when one cannot be made."""
    for where in sorted({side.where for w in workloads for side in w.sides} - {"ours"}):
        if not (ROOT / f".venv-{where}" / ".ready").exists():
            print(f"making .venv-{where} ...", flush=True)
            subprocess.run([ROOT / "benchmarks/peers" / SETUP[where]], check=True)
