"""Checkpoints are complete or absent, whatever fails and whenever the process dies; damaged ones are recognised."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from ladder.base import files
from ladder.base.errors import UserError
from ladder.base.files import sha256, write_json, write_lines
from ladder.engine import checkpoint
from ladder.engine.checkpoint import newest, save, step_of, verify, write_directory


def writer(text: str = "hello") -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "a.txt").write_text(text)
        (directory / "sub").mkdir()
        (directory / "sub" / "b.bin").write_bytes(bytes(1000))

    return write


def failing(err: BaseException) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "half.bin").write_bytes(bytes(123))
        raise err

    return write


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


# ---------------------------------------------------------------- writing


def test_a_written_directory_is_complete_and_has_a_manifest(tmp_path: Path) -> None:
    final = write_directory(tmp_path / "deep" / "model", writer())
    assert names(final) == ["a.txt", "manifest.json", "sub"] and names(final.parent) == ["model"]
    manifest = json.loads((final / "manifest.json").read_text())
    assert manifest.keys() == {"a.txt", "sub/b.bin"}
    assert manifest["a.txt"] == {
        "bytes": 5,
        "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",  # of "hello"
    }
    assert verify(final) is None


def test_an_earlier_version_is_replaced_completely(tmp_path: Path) -> None:
    write_directory(tmp_path / "model", failing_only_after(writer("old"), "extra.txt"))
    write_directory(tmp_path / "model", writer("new"))
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["a.txt", "manifest.json", "sub"]
    assert (tmp_path / "model" / "a.txt").read_text() == "new"


def failing_only_after(write: Callable[[Path], None], extra: str) -> Callable[[Path], None]:
    def both(directory: Path) -> None:
        write(directory)
        (directory / extra).write_text("x")

    return both


@pytest.mark.parametrize("err", [ValueError("a bug"), KeyboardInterrupt(), SafetensorError("invalid header")])
def test_a_writer_that_raises_leaves_nothing(tmp_path: Path, err: BaseException) -> None:
    with pytest.raises(type(err)) as caught:
        write_directory(tmp_path / "model", failing(err))
    assert caught.value is err and names(tmp_path) == []
    write_directory(tmp_path / "model", writer())
    with pytest.raises(type(err)):
        write_directory(tmp_path / "model", failing(err))
    assert names(tmp_path) == ["model"] and verify(tmp_path / "model") is None


FULL = {
    "os": (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    "safetensors": (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "the disk is full",
    ),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "the quota is used up"),
    "other": (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
}


@pytest.mark.parametrize("kind", FULL)
def test_a_disk_error_is_a_user_error_and_the_earlier_version_stays(tmp_path: Path, kind: str) -> None:
    err, why = FULL[kind]
    write_directory(tmp_path / "model", writer("old"))
    with pytest.raises(UserError, match=rf"model: cannot write here: {why} \(123 bytes") as caught:
        write_directory(tmp_path / "model", failing(err))
    assert "Hint: free some space" in str(caught.value)
    assert names(tmp_path) == ["model"]
    assert verify(tmp_path / "model") is None and (tmp_path / "model" / "a.txt").read_text() == "old"


def test_a_real_disk_error_in_safetensors(tmp_path: Path) -> None:
    """In a process that may not write files larger than 1000 bytes."""
    code = f"""
import numpy as np
from pathlib import Path
from safetensors.numpy import save_file
from ladder.engine.checkpoint import write_directory
from ladder.base.errors import UserError
try:
    final = Path({str(tmp_path)!r}) / "model"
    write_directory(final, lambda d: save_file({{"x": np.zeros(9999)}}, d / "x.safetensors"))
except UserError as err:
    print(err)
"""

    def limits() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        [sys.executable, "-B", "-c", code], capture_output=True, text=True, check=True, preexec_fn=limits
    )
    assert "cannot write here: File too large" in done.stdout
    assert names(tmp_path) == []


def test_a_failed_rename_restores_the_earlier_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_directory(tmp_path / "model", writer("old"))
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="Input/output error"):
        write_directory(tmp_path / "model", writer("new"))
    assert names(tmp_path) == ["model"] and (tmp_path / "model" / "a.txt").read_text() == "old"


def test_everything_is_fsynced_before_the_final_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = files.fsync, Path.rename

    def note_fsync(path: Path) -> None:
        events.append(path.name)
        fsync(path)

    def note_rename(self: Path, target: Path) -> Path:
        events.append(f"-> {target.name}")
        return rename(self, target)

    for module in (files, checkpoint):
        monkeypatch.setattr(module, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    write_directory(tmp_path / "model", writer())
    at = events.index("-> model")
    assert set(events[:at]) == {"a.txt", "b.bin", "manifest.json", "sub", ".model.partial"}
    assert events[at + 1 :] == [tmp_path.name]


# ---------------------------------------------------------------- verifying


def test_verify_finds_every_damage(tmp_path: Path) -> None:
    def fresh() -> Path:
        return write_directory(tmp_path / "model", writer())

    (fresh() / "sub" / "b.bin").write_bytes(bytes(999))
    assert verify(tmp_path / "model") == "sub/b.bin has 999 bytes instead of 1000"
    (fresh() / "a.txt").write_text("hellO")
    assert verify(tmp_path / "model") == "a.txt has changed since it was written"
    (fresh() / "a.txt").unlink()
    assert verify(tmp_path / "model") == "a.txt is missing"
    (fresh() / "manifest.json").unlink()
    assert verify(tmp_path / "model") == "it has no manifest"
    (fresh() / "manifest.json").write_text('{"a.txt": {"by')
    assert "manifest cannot be read" in (verify(tmp_path / "model") or "")
    (fresh() / "manifest.json").write_text("[]")
    assert "manifest" in (verify(tmp_path / "model") or "")
    assert verify(fresh()) is None


def test_the_newest_undamaged_checkpoint_is_found(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, writer(str(step)), keep=9)
    said: list[str] = []
    path = newest(tmp_path, said.append)
    assert path is not None and step_of(path) == 15 and not said
    (tmp_path / "step-000015" / "a.txt").write_text("xx")
    (tmp_path / "step-000010" / "manifest.json").unlink()
    path = newest(tmp_path, said.append)
    assert path is not None and step_of(path) == 5 and (path / "a.txt").read_text() == "5"
    assert len(said) == 2
    assert "step-000015 is damaged: a.txt has changed" in said[0] and "step-000010 is damaged: it has no" in said[1]
    assert names(tmp_path) == ["step-000005"]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    said: list[str] = []
    assert newest(tmp_path / "nowhere", said.append) is None
    assert newest(tmp_path, said.append) is None and not said


def test_partial_directories_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    save(tmp_path, 1, writer("one"))
    (tmp_path / ".step-000002.partial").mkdir()
    (tmp_path / ".step-000002.partial" / "half").write_text("x")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".hidden").write_text("mine")
    path = newest(tmp_path, lambda _: None)
    assert path is not None and step_of(path) == 1
    assert names(tmp_path) == [".hidden", "notes.txt", "step-000001"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1, writer("one"))
    (tmp_path / "step-000001").rename(tmp_path / ".step-000001.old")
    path = newest(tmp_path, lambda _: None)
    assert path is not None and (path / "a.txt").read_text() == "one"
    write_directory(tmp_path / "model", writer("old"))
    (tmp_path / "model").rename(tmp_path / ".model.old")
    with pytest.raises(ValueError, match="a bug"):
        write_directory(tmp_path / "model", failing(ValueError("a bug")))
    assert (tmp_path / "model" / "a.txt").read_text() == "old"


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 999_999, 1_000_000):
        save(tmp_path, step, writer(), keep=2)
    assert names(tmp_path) == ["step-1000000", "step-999999"]
    path = newest(tmp_path, lambda _: None)
    assert path is not None and step_of(path) == 1_000_000
    save(tmp_path, 1_000_001, writer(), keep=1)
    assert names(tmp_path) == ["step-1000001"]


# ---------------------------------------------------------------- hashes and single files


def test_sha256_of_a_directory_is_of_names_and_contents(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for d in (a, b):
        d.mkdir()
        writer()(d)
    first = sha256(a)
    assert first == sha256(b) and len(first) == 64
    (b / "manifest.json").write_text("{}")
    assert sha256(b) == first  # the manifest describes the contents and is not hashed
    (b / "a.txt").rename(b / "c.txt")
    assert sha256(b) != first
    (b / "c.txt").rename(b / "a.txt")
    (b / "a.txt").write_text("hellO")
    assert sha256(b) != first
    assert sha256(write_directory(tmp_path / "c", writer())) == first


def test_write_json_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"} and names(path.parent) == ["x.json"]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (write_json, write_lines):
        with pytest.raises(UserError, match=r"x\.json: cannot write here: the disk is full"):
            write(path, ["other"])
        assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"} and names(path.parent) == ["x.json"]


def test_write_lines(tmp_path: Path) -> None:
    write_lines(tmp_path / "x.jsonl", [{"a": 1}, {"b": "é\n"}])
    assert (tmp_path / "x.jsonl").read_text(encoding="utf-8") == '{"a": 1}\n{"b": "é\\n"}\n'
