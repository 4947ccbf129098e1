"""Directories that are either complete or absent: checkpoints that survive a kill at any instant.

A directory is written under a temporary name beside its final one. Its manifest, with the size and sha256 of every
file, is written last; every file and directory is fsynced; one rename makes it visible. Resuming takes the newest
checkpoint whose manifest verifies; a damaged one is reported and deleted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ladder.base.files import MANIFEST, disk_error, fsync, sha256


def write_directory(final: Path, writer: Callable[[Path], None]) -> Path:
    """Lets `writer` fill a directory, and moves it to `final` when it is complete.

    On any error no partial directory remains, and a directory that was at `final` before is still there. Raises
    UserError when the disk cannot be written (full, no permission, I/O error).
    """
    partial = final.with_name(f".{final.name}.partial")
    _settle(_old_path(final))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        writer(partial)
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(partial)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        for path in [*files, partial / MANIFEST, *(p for p in partial.rglob("*") if p.is_dir()), partial]:
            fsync(path)
        _move_into_place(partial, final)
    except BaseException as err:
        size = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file()) if partial.exists() else 0
        shutil.rmtree(partial, ignore_errors=True)
        os_error = _os_error(err)
        if os_error is None:
            raise
        raise disk_error(os_error, final, size) from err
    return final


def _move_into_place(partial: Path, final: Path) -> None:
    """Renames `partial` to `final`. A rename cannot replace a directory, so an existing one is moved aside first."""
    old = _old_path(final)
    try:
        if final.exists():
            final.rename(old)
        partial.rename(final)
        fsync(final.parent)
    finally:
        _settle(old)


def _old_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _settle(old: Path) -> None:
    """Ends an interrupted replacement: deletes a version that was moved aside, or restores it if no new version is
    there."""
    if not old.exists():
        return
    final = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(final)


def _os_error(err: BaseException) -> OSError | None:
    """The operating system's error in an exception, or None; safetensors wraps it in its own exception class."""
    if isinstance(err, OSError):
        return err
    number = re.search(r"\(os error (\d+)\)", str(err)) if isinstance(err, SafetensorError) else None
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def verify(directory: Path) -> str | None:
    """What is wrong with the files of a directory, as a sentence; None when they are complete and unchanged."""
    try:
        manifest: Any = json.loads((directory / MANIFEST).read_text())
    except FileNotFoundError:
        return "it has no manifest"
    except (ValueError, OSError) as err:
        return f"its manifest cannot be read ({err})"
    if not isinstance(manifest, dict):
        return "its manifest is not a list of files"
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
    """Writes root/step-NNNNNN and deletes all but the newest `keep` checkpoints (at least 1)."""
    assert keep >= 1
    written = write_directory(root / f"step-{step:06d}", writer)
    for old in _all_newest_first(root)[keep:]:
        shutil.rmtree(old)
    return written


def newest(root: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies, or None. Reports each newer, damaged one to `say` and deletes it."""
    for path in root.glob(".step-*.old"):
        _settle(path)
    for path in root.glob(".step-*.partial"):
        shutil.rmtree(path)
    for path in _all_newest_first(root):
        damage = verify(path)
        if damage is None:
            return path
        say(f"{path} is damaged: {damage}; going back to the one before")
        shutil.rmtree(path)
    return None


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def _all_newest_first(root: Path) -> list[Path]:
    checkpoints = (p for p in root.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit())
    return sorted(checkpoints, key=step_of, reverse=True)
