"""The code that a stage's result depends on: the modules that its kind imports, directly and through other modules.

Imports are read from the sources, also inside functions, and so are modules named by a string ("ladder.rewards.worker",
which runs in its own process). A file that is not reached this way does not change the stage's identity. Packages that
only report (`ASIDE`) are left out wherever they are imported: they change no weight.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from ladder.base.files import sha256

SOURCE = Path(__file__).resolve().parents[1]
ROOT = "ladder"
ASIDE = ("cli", "commands", "diagnose", "lab", "report", "tracking", "data.inspection", "pipeline.alarms")
"""Modules and packages below `ladder` that change no weight."""
ALWAYS = ("ladder.pipeline.run",)
"""Modules that every stage runs through."""
KERNELS = "ladder.kernels"
"""The package of kernels, which are chosen at run time for the machine: all its files count, the C sources too."""


@functools.cache
def identity(module: str) -> str:
    """A hash of the sources that a module reaches through imports."""
    digest = hashlib.sha256()
    for path in reached((module, *ALWAYS)):
        digest.update(f"{path.relative_to(SOURCE).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def reached(modules: tuple[str, ...], source: Path = SOURCE) -> list[Path]:
    """The source files of the modules and of all modules that they import, also indirectly, sorted. source: the
    directory of the package."""
    known = _modules(source)
    seen: set[str] = set()
    waiting = [m for m in modules if m in known]
    while waiting:
        name = waiting.pop()
        if name in seen or _is_aside(name):
            continue
        seen.add(name)
        imported = _named_modules(known[name], known[name].stat().st_mtime_ns) & known.keys()
        if name.startswith(KERNELS):
            imported |= {m for m in known if m.startswith(f"{KERNELS}.")}
        packages = {name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)}
        waiting += sorted(imported | (packages & known.keys()))
    files = [known[name] for name in seen]
    if KERNELS in seen:
        files += [p for p in known[KERNELS].parent.iterdir() if p.suffix in (".c", ".h")]
    return sorted(files)


def _is_aside(module: str) -> bool:
    """Whether a module belongs to `ASIDE`."""
    below = module.removeprefix(f"{ROOT}.")
    return any(below == name or below.startswith(f"{name}.") for name in ASIDE)


def _modules(source: Path) -> dict[str, Path]:
    """The file of every module of the package, by the module's name."""
    names = {}
    for path in source.rglob("*.py"):
        parts = path.relative_to(source).with_suffix("").parts
        names[".".join((ROOT, *parts)).removesuffix(".__init__")] = path
    return names


@functools.cache
def _named_modules(path: Path, changed: int) -> frozenset[str]:
    """The names of modules that a file imports or holds in a string. changed: the file's modification time, a key of
    the cache."""
    return frozenset(_names(path))


def _names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(f"{ROOT}."):
            yield node.value.partition(":")[0]
