"""Directories that are either complete or not there: checkpoints that survive being killed at any instant.

Written beside its final name, every file and directory fsynced, a manifest with each file's size and sha256 last,
then one rename. Resuming takes the newest one whose manifest verifies; a damaged one is passed over with a word.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ladder.errors import UserError

MANIFEST = "manifest.json"


def write_directory(final: Path, writer: Callable[[Path], None]) -> Path:
    """Lets `writer` fill a directory and puts it at `final`, whole. Raises UserError when the disk refuses."""
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        writer(partial)
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(partial)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        for path in [*files, partial / MANIFEST, *(p for p in partial.rglob("*") if p.is_dir()), partial]:
            fsync(path)
        if final.exists():
            old = final.with_name(f".{final.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
            partial.rename(final)
            shutil.rmtree(old)
        else:
            partial.rename(final)
        fsync(final.parent)
    except OSError as err:
        size = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file()) if partial.exists() else 0
        shutil.rmtree(partial, ignore_errors=True)
        raise disk_error(err, final, size) from err
    return final


def disk_error(err: OSError, path: Path, size: int) -> UserError:
    """A full or forbidding disk, in a sentence."""
    why = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EROFS: "it is read-only"}
    text = why.get(err.errno or 0, err.strerror or str(err))
    return UserError(
        f"cannot write here: {text} ({size:,} bytes had been written); what was saved before is untouched",
        file=path,
        mend="free some space or choose another place with --out, and run again",
    )


def verify(directory: Path) -> str | None:
    """What is wrong with a directory's files; None when it is complete and unchanged."""
    try:
        manifest: dict[str, dict[str, Any]] = json.loads((directory / MANIFEST).read_text())
    except FileNotFoundError:
        return "it has no manifest"
    except (ValueError, OSError) as err:
        return f"its manifest cannot be read ({err})"
    for name, expected in manifest.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if sha256(path) != expected["sha256"]:
            return f"{name} has changed since it was written"
    return None


def save(root: Path, step: int, writer: Callable[[Path], None], keep: int = 2) -> Path:
    """Writes root/step-NNNNNN and drops all but the newest `keep`."""
    done = write_directory(root / f"step-{step:06d}", writer)
    for old in _all(root)[keep:]:
        shutil.rmtree(old)
    return done


def newest(root: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; tells `say` of each one passed over, and drops it."""
    for path in root.glob(".*"):
        shutil.rmtree(path)
    for path in _all(root):
        wrong = verify(path)
        if wrong is None:
            return path
        say(f"{path} is damaged: {wrong}; going back to the one before")
        shutil.rmtree(path)
    return None


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _all(root: Path) -> list[Path]:
    return sorted(root.glob("step-*"), reverse=True)


def sha256(path: Path) -> str:
    """Of a file, or of a directory's names and contents."""
    digest = hashlib.sha256()
    if path.is_dir():
        for p in sorted(p for p in path.rglob("*") if p.is_file() and p.name != MANIFEST):
            digest.update(f"{p.relative_to(path)}\0{sha256(p)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, value: Any) -> None:
    """One JSON file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        fsync(partial)
        partial.rename(path)
        fsync(path.parent)
    except OSError as err:
        raise disk_error(err, path, 0) from err
