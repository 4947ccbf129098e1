"""Directories that are either complete or not there: checkpoints that survive being killed at any instant.

Written beside its final name, every file and directory fsynced, a manifest with each file's size and sha256 last,
then one rename. Resuming takes the newest one whose manifest verifies; a damaged one is passed over with a word.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ladder.errors import UserError

MANIFEST = "manifest.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""How a disk says that it takes no more."""


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


def read_json(path: Path) -> Any:
    """Raises UserError when it cannot be read or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise UserError(f"is damaged: {err}", file=path, mend="remove it and run again") from err
    except OSError as err:
        raise UserError(f"cannot be read: {err.strerror}", file=path) from err


def write_json(path: Path, value: Any) -> None:
    """One JSON file, whole or not at all. Raises UserError when the disk refuses."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """One JSON Lines file, whole or not at all. Raises UserError when the disk refuses."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """One text file, whole or not at all. Raises UserError when the disk refuses."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        fsync(partial)
        partial.rename(path)
        fsync(path.parent)
    except OSError as err:
        size = partial.stat().st_size if partial.exists() else 0
        partial.unlink(missing_ok=True)
        raise disk_error(err, path, size) from err
