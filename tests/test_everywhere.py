"""What `make everywhere` takes for a compiler, and what it says of a condition that cannot be run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import everywhere
from everywhere import COMPILER, CONDITIONS, Condition, Outcome, environment, line, obstacle, without_compilers

COMPILERS = ("cc", "gcc", "g++", "c++", "gcc-12", "clang", "clang++", "clang-19", "x86_64-linux-gnu-gcc-12", "c99")
OTHERS = ("gcc-ar-12", "gccgo", "clang-format", "ccache-swig", "python3", "as", "ld", "accept", "cpp-filter", "gcov")


def test_what_is_a_compiler() -> None:
    assert all(COMPILER.fullmatch(name) for name in COMPILERS)
    assert not any(COMPILER.fullmatch(name) for name in OTHERS)


def test_a_path_without_compilers_has_everything_else(tmp_path: Path) -> None:
    for directory, names in (("some", ["cc", "gcc-12", "ls"]), ("none", ["cat"])):
        (tmp_path / directory).mkdir()
        for name in names:
            (tmp_path / directory / name).touch()
    (tmp_path / "links").mkdir()
    path = os.pathsep.join(str(tmp_path / name) for name in ("some", "none", "nowhere"))
    first, second = without_compilers(path, tmp_path / "links").split(os.pathsep)
    assert os.listdir(first) == ["ls"] and Path(first, "ls").resolve() == tmp_path / "some" / "ls"
    assert second == str(tmp_path / "none")


def test_only_a_condition_sets_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDER_KERNELS", "0")
    monkeypatch.setenv("CC", "some-compiler")
    env = environment(CONDITIONS["v3"], tmp_path)
    assert env["LADDER_MARCH"] == "x86-64-v3" and env["LADDER_TEST_THREADS"] == "1" and "LADDER_KERNELS" not in env
    assert env["XDG_CACHE_HOME"].startswith(str(tmp_path)) and env["CC"] == "some-compiler"
    assert "CC" not in environment(CONDITIONS["no-compiler"], tmp_path)
    assert environment(CONDITIONS["four-threads"], tmp_path)["LADDER_TEST_THREADS"] == "4"


def test_what_cannot_be_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(everywhere.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(everywhere, "_flags", lambda: {"sse4_2", "popcnt"})
    monkeypatch.setattr(everywhere.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert obstacle(CONDITIONS["v2"]) is None
    assert obstacle(CONDITIONS["v3"]) == "this processor has no avx2, bmi2, fma"
    monkeypatch.setattr(everywhere.platform, "machine", lambda: "aarch64")
    assert obstacle(CONDITIONS["v2"]) == "this processor is aarch64, not x86-64" and obstacle(Condition("x")) is None
    monkeypatch.setattr(everywhere.shutil, "which", lambda name: None)
    assert obstacle(Condition("x")) == "this machine has no C compiler"
    assert obstacle(CONDITIONS["no-kernels"]) is None


def test_a_line_of_the_table() -> None:
    assert line("v2", Outcome(3501, 2, 51, 233.4)).split() == [
        *("v2", "kernels", "for", "x86-64-v2", "3501", "2", "51", "233"),
    ]
    assert line("v4", Outcome(why="skipped: this processor has no avx512f")).endswith("has no avx512f")
