"""Directories that are either complete or not there: checkpoints that survive being killed at any instant.

Written beside its final name, every file and directory fsynced, a manifest with each file's size and sha256 last,
then one rename. Resuming takes the newest one whose manifest verifies; a damaged one is passed over with a word.
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
    """Lets `writer` fill a directory and puts it at `final`, whole. Raises UserError when the disk refuses.

    Whatever goes wrong, nothing half-written stays, and what stood at `final` before still does.
    """
    partial = final.with_name(f".{final.name}.partial")
    _settle(_old(final))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        writer(partial)
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(partial)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        for path in [*files, partial / MANIFEST, *(p for p in partial.rglob("*") if p.is_dir()), partial]:
            fsync(path)
        _put(partial, final)
    except BaseException as err:
        size = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file()) if partial.exists() else 0
        shutil.rmtree(partial, ignore_errors=True)
        refused = _refusal(err)
        if refused is None:
            raise
        raise disk_error(refused, final, size) from err
    return final


def _put(partial: Path, final: Path) -> None:
    """Renames into place. A directory cannot replace another in one step, so the old one steps aside meanwhile."""
    old = _old(final)
    try:
        if final.exists():
            final.rename(old)
        partial.rename(final)
        fsync(final.parent)
    finally:
        _settle(old)


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _settle(old: Path) -> None:
    """Brings a version that stepped aside back if nothing took its place, and drops it otherwise."""
    if not old.exists():
        return
    final = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(final)


def _refusal(err: BaseException) -> OSError | None:
    """The disk's refusal behind an exception, if that is what it is; safetensors wraps it into a kind of its own."""
    if isinstance(err, OSError):
        return err
    number = re.search(r"\(os error (\d+)\)", str(err)) if isinstance(err, SafetensorError) else None
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def verify(directory: Path) -> str | None:
    """What is wrong with a directory's files; None when it is complete and unchanged."""
    try:
        manifest: Any = json.loads((directory / MANIFEST).read_text())
    except FileNotFoundError:
        return "it has no manifest"
    except (ValueError, OSError) as err:
        return f"its manifest cannot be read ({err})"
    if not isinstance(manifest, dict):
        return "its manifest is no list of files"
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
    """Writes root/step-NNNNNN and drops all but the newest `keep` (at least 1)."""
    assert keep >= 1
    done = write_directory(root / f"step-{step:06d}", writer)
    for old in _all(root)[keep:]:
        shutil.rmtree(old)
    return done


def newest(root: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; tells `say` of each one passed over, and drops it."""
    for path in root.glob(".step-*.old"):
        _settle(path)
    for path in root.glob(".step-*.partial"):
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
    found = (p for p in root.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit())
    return sorted(found, key=step_of, reverse=True)
