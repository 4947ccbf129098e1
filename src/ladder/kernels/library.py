"""Compiles a C file of this package with the machine's C compiler, once, and loads it.

    lib = library("decode")        # None where that is impossible; why() gives the reason

The files are plain C with GCC's vector extensions, which gcc and clang support on every processor; they include no
header of torch, so a compilation takes a second or two. The compiled library is stored in the user's cache directory
under a hash of source, flags, compiler and processor, so a library is recompiled when one of these changes. Kernels get
addresses of tensors, and run without the interpreter lock.

A kernel is never the only implementation: callers also have a path in torch's operators, which is the kernel's oracle
in the tests. LADDER_KERNELS=0 in the environment selects that path, on CUDA too.

LADDER_MARCH in the environment names the processor that the compiler targets (its -march; the default is `native`):
`x86-64-v3` gives a library for any processor with AVX2. A library whose target has instructions that this processor
lacks is not used, and `why` names them.
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

import torch  # before any library is loaded: the kernels share torch's OpenMP runtime

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
    """The reason why one of the libraries is not available, as a message to the user; None if all are available."""
    return next((reason for name in NAMES if (reason := why(name))), None)


def why(name: str) -> str | None:
    """The reason why a library is not available, as a message to the user; None if it is available."""
    return None if library(name) is not None else _reasons[name]


def march() -> str:
    """The processor that the compiler targets, as its -march names it."""
    return os.environ.get("LADDER_MARCH", "native")


def wanted() -> bool:
    """Whether kernels may be used instead of torch's operators."""
    return os.environ.get("LADDER_KERNELS") != "0"


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The library compiled from `name`.c, or from the cache; None where kernels are off or cannot be compiled."""
    if not wanted():
        _reasons[name] = "LADDER_KERNELS=0 turns compiled kernels off"
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        _reasons[name] = "there is no C compiler (cc), so torch's operators are used; install gcc or clang"
        return None
    try:
        loaded = ctypes.CDLL(str(_compiled(name, compiler)))
    except (subprocess.CalledProcessError, OSError) as err:
        error_output = err.stderr.strip() if isinstance(err, subprocess.CalledProcessError) else ""
        lines = (error_output or str(err)).splitlines()
        message = next((line for line in lines if "error" in line), lines[-1])
        _reasons[name] = f"{compiler} could not compile {name}.c ({message}), so torch's operators are used"
        return None
    loaded.lacks.restype = ctypes.c_char_p
    if lacks := loaded.lacks():
        target = f"{name}.c is compiled for {march()}, and this processor has no {lacks.decode()}"
        _reasons[name] = f"{target}, so torch's operators are used"
        return None
    return loaded


def declared(lib: ctypes.CDLL | None, arguments: Types, results: Mapping[str, Any] = NONE) -> ctypes.CDLL | None:
    """Declares, once, the argument and result types of the library's functions; returns the library, None for None."""
    if lib is not None and getattr(lib, next(reversed(arguments))).argtypes is None:
        for name, types in arguments.items():  # in order: a thread that sees the last function declared sees all
            function = getattr(lib, name)
            function.restype = results.get(name)
            function.argtypes = types
    return lib


def _compiled(name: str, compiler: str) -> Path:
    """The path of the compiled library, which is compiled unless it is in the cache."""
    sources = [HERE / f"{name}.c", *sorted(HERE.glob("*.h"))]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    flags = (f"-march={march()}", *FLAGS)
    digest = hashlib.sha256("\0".join([version, _processor(), *flags, *(s.read_text() for s in sources)]).encode())
    path = _cache() / f"{name}-{digest.hexdigest()[:20]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            compiled = Path(directory) / path.name
            command = [compiler, *flags, str(sources[0]), "-o", str(compiled), "-lm"]
            subprocess.run(command, capture_output=True, text=True, check=True)
            os.replace(compiled, path)  # atomic: another process sees the complete file or none
    return path


def _cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "signal-ladder" / "kernels"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def _processor() -> str:
    """A description of the processor, on which the effect of -march=native depends."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join([platform.machine(), *features[:2]])


def readable(x: torch.Tensor) -> bool:
    """Whether the training kernels support a tensor: float32 on the CPU."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def address(x: torch.Tensor | None) -> ctypes.c_void_p:
    """The address of a tensor's data; null for None. The tensor must be contiguous and outlive the call."""
    assert x is None or x.is_contiguous()
    return ctypes.c_void_p(None if x is None else x.data_ptr())
