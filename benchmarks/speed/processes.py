"""Runs one side as a process of its own, pinned to its cores, and measures the most memory that it held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.workload import Side

ROOT = Path(__file__).resolve().parents[2]
PEERS = {name: ROOT / f".venv-{name}/bin/python" for name in ("peers", "vllm")}
PYTHON = {"ours": Path(sys.executable), **PEERS}
MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD", "THP_MEM_ALLOC_ENABLE")


@dataclass(frozen=True)
class Place:
    """Where sides run: which cores, in order of preference, and how many of them; without cores, wherever the system
    lets them. shared: the peers live in this program's own environment."""

    cores: tuple[int, ...]
    threads: int
    shared: bool = False

    @property
    def command(self) -> list[str]:
        if not self.cores:
            return []
        return ["taskset", "-c", ",".join(map(str, self.cores[: self.threads]))]


class Failed(RuntimeError):
    """A side did not come to its end."""


@dataclass
class Started:
    """A side's process. waits: it has imported what it needs, or is at it, and does no work before it is told to."""

    name: str
    out: Path
    process: subprocess.Popen[bytes]
    waits: bool


def run(side: Side, work: Path, name: str, place: Place, limit: float) -> dict[str, Any]:
    """The side's own report, with "peak_gb" and "wall". Raises Failed with the end of its log."""
    return finish(start(side, work, name, place), limit)


def start(side: Side, work: Path, name: str, place: Place, *, waits: bool = False) -> Started:
    out = work / "runs" / name
    out.mkdir(parents=True, exist_ok=True)
    result = out / "result.json"
    result.unlink(missing_ok=True)
    command = [*place.command, *_program(side, place, waits), str(work), str(result), json.dumps(side.options)]
    with (out / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            env=_environment(side, place),
            stdin=subprocess.PIPE if waits else None,
            stdout=log,
            stderr=log,
            cwd=ROOT,
        )
    return Started(name, out, process, waits)


def finish(started: Started, limit: float) -> dict[str, Any]:
    """Lets a side that waits begin. The clock of its limit and its "wall" start here."""
    process, out = started.process, started.out
    begun = time.perf_counter()
    if started.waits and process.stdin is not None:
        with suppress(BrokenPipeError):  # it ended already; its status says how
            process.stdin.write(b"go\n")
            process.stdin.close()
    code, peak = _wait(process, begun + limit)
    if code != 0 or not (out / "result.json").exists():
        tail = "\n".join((out / "log").read_text(errors="replace").splitlines()[-12:])
        raise Failed(f"{started.name}: ended with {code} after {time.perf_counter() - begun:.0f} s\n{tail}")
    made = json.loads((out / "result.json").read_text())
    return made | {"peak_gb": peak / 2**20, "wall": time.perf_counter() - begun}


def _program(side: Side, place: Place, waits: bool) -> list[str]:
    module = "benchmarks.speed.gate" if waits else "benchmarks.speed.side"
    if side.where == "ours":
        return [str(PYTHON["ours"]), "-m", module, side.program]
    python, script = PYTHON["ours" if place.shared else side.where], str(ROOT / "benchmarks/peers" / side.program)
    return [str(python), *(["-m", module] if waits else []), script]


def _environment(side: Side, place: Place) -> dict[str, str]:
    """Nothing of the caller's that tunes an allocator or threads; what the side is given instead."""
    kept = {k: v for k, v in os.environ.items() if k not in MALLOC and not k.startswith(("OMP_", "MKL_", "KMP_"))}
    threads = str(place.threads)
    own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    return kept | own | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"} | side.env


def _wait(process: subprocess.Popen[Any], until: float) -> tuple[int, int]:
    """The exit status and the peak of its memory in kB; a process that takes too long is ended."""
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_maxrss
        if time.perf_counter() > until:
            process.kill()
            until = float("inf")
        time.sleep(0.1)
