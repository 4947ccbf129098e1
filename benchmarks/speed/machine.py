"""The machine and the program that figures belong to."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

TELLING = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


def describe(root: Path) -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "processor": _cpuinfo("model name") or platform.processor(),
        "flags": [f for f in TELLING if f in _cpuinfo("flags").split() + _cpuinfo("Features").split()],
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": _git(root, "rev-parse", "--short", "HEAD"),
        "changed": bool(_git(root, "status", "--porcelain", "--", "src")),
    }


def driver() -> str:
    """The version of NVIDIA's driver, where there is one."""
    if shutil.which("nvidia-smi") is None:
        return ""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def _cpuinfo(name: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")


def _git(root: Path, *args: str) -> str:
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=False).stdout.strip()
