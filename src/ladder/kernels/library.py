"""Compiles a C file of this package with the machine's own compiler, once, and loads it.

    lib = library("decode")        # None where there is no compiler; why() then says so

The files are plain C with GCC's vector extensions, which gcc and clang know on every processor; nothing of torch's is
included, so a compilation takes a second or two. What is compiled lies in the user's cache under a hash of source,
flags, compiler and processor, so a changed one of these never meets an old library. Kernels get addresses of tensors
and release the interpreter while they run.

A kernel is never the only way: callers have a path in torch's operators, which is the kernel's oracle in the tests.
LADDER_KERNELS=0 in the environment chooses that path, and the plain operators on CUDA too.

LADDER_MARCH in the environment names the processor that the compiler targets (its -march; `native` where nothing is
said): `x86-64-v3` gives a library for any processor with AVX2. A library whose target has instructions that this
processor lacks is not used, and `why` names them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch  # first: its OpenMP runtime is the one that the kernels share

HERE = Path(__file__).parent
FLAGS = (
    "-std=gnu11", "-O3", "-fPIC", "-shared", "-fopenmp",
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wall", "-Wno-psabi",
)  # fmt: skip

Address, Int, Float, Double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_double
Types = dict[str, list[Any]]
NONE: Mapping[str, Any] = {}

NAMES = ("layers", "attend", "decode")
_reasons: dict[str, str] = {}


def lacking() -> str | None:
    """Why some library is not there, in a sentence; None if all are."""
    return next((reason for name in NAMES if (reason := why(name))), None)


def why(name: str) -> str | None:
    """Why a library is not there, in a sentence; None if it is."""
    return None if library(name) is not None else _reasons[name]


def march() -> str:
    """The processor that the compiler targets, as its -march names it."""
    return os.environ.get("LADDER_MARCH", "native")


def wanted() -> bool:
    """Whether anything but general operators is."""
    return os.environ.get("LADDER_KERNELS") != "0"


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The library made of `name`.c, compiled if need be; None where that is impossible or not wanted."""
    if not wanted():
        _reasons[name] = "LADDER_KERNELS=0 turns compiled kernels off"
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        _reasons[name] = "there is no C compiler (cc), so general operators are used; gcc or clang mends it"
        return None
    try:
        loaded = ctypes.CDLL(str(_compiled(name, compiler)))
    except (subprocess.CalledProcessError, OSError) as err:
        said = err.stderr.strip() if isinstance(err, subprocess.CalledProcessError) else ""
        lines = (said or str(err)).splitlines()
        last = next((line for line in lines if "error" in line), lines[-1])
        _reasons[name] = f"{compiler} could not make {name}.c ({last}), so general operators are used"
        return None
    loaded.lacks.restype = ctypes.c_char_p
    if lacks := loaded.lacks():
        target = f"{name}.c is compiled for {march()}, and this processor has no {lacks.decode()}"
        _reasons[name] = f"{target}, so general operators are used"
        return None
    return loaded


def declared(lib: ctypes.CDLL | None, arguments: Types, results: Mapping[str, Any] = NONE) -> ctypes.CDLL | None:
    """The library with the types of its functions' arguments and results; None stays None."""
    if lib is not None and getattr(lib, next(reversed(arguments))).argtypes is None:
        for name, kinds in arguments.items():  # in order: whoever sees the last one's sees all
            function = getattr(lib, name)
            function.restype = results.get(name)
            function.argtypes = kinds
    return lib


def _compiled(name: str, compiler: str) -> Path:
    """The compiled file, made anew unless it is in the cache."""
    sources = [HERE / f"{name}.c", *sorted(HERE.glob("*.h"))]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    flags = (f"-march={march()}", *FLAGS)
    digest = hashlib.sha256("\0".join([version, _processor(), *flags, *(s.read_text() for s in sources)]).encode())
    path = _cache() / f"{name}-{digest.hexdigest()[:20]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            made = Path(directory) / path.name
            command = [compiler, *flags, str(sources[0]), "-o", str(made), "-lm"]
            subprocess.run(command, capture_output=True, text=True, check=True)
            os.replace(made, path)  # whole, or not there
    return path


def _cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "signal-ladder" / "kernels"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def _processor() -> str:
    """What -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    known = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join([platform.machine(), *known[:2]])


def readable(x: torch.Tensor) -> bool:
    """Whether a tensor is of the kind that the kernels of training read."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def address(x: torch.Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's numbers lie; null for None. The tensor must be contiguous and outlive the call."""
    assert x is None or x.is_contiguous()
    return ctypes.c_void_p(None if x is None else x.data_ptr())
