"""Atomic file writes (to a temporary file beside the target, fsync, rename), and SHA-256 hashes of files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ladder.base.errors import UserError

MANIFEST = "manifest.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Error numbers of a disk that accepts no more data: full, over quota, read-only."""


def disk_error(err: OSError, path: Path, size: int) -> UserError:
    """The UserError for a failed write. size: bytes written before the failure."""
    reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EROFS: "it is read-only"}
    reason = reasons.get(err.errno or 0, err.strerror or str(err))
    return UserError(
        f"cannot write here: {reason} ({size:,} bytes had been written); what was saved before is untouched",
        file=path,
        hint="free some space or choose another place with --out, and run again",
    )


def sha256(path: Path) -> str:
    """Hex digest of a file, or of a directory's relative file names and contents (without its manifest)."""
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
    """Flushes a file or a directory entry to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError when the file cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise UserError(f"is damaged: {err}", file=path, hint="remove it and run again") from err
    except OSError as err:
        raise UserError(f"cannot be read: {err.strerror}", file=path) from err


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically. Raises UserError when the disk refuses."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Writes a JSON Lines file atomically, one row a line. Raises UserError when the disk refuses."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically. Raises UserError when the disk refuses."""
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
