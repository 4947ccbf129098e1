"""The suite under every condition that changes rounding, libraries or cores, on one machine: `make everywhere`.

    python tests/everywhere.py [--jobs 2] [condition ...] [-- arguments of pytest]

Prints condition / passed / failed / skipped / seconds and the names of the tests that fail; the exit status is 1 if any
does, or if a condition is not what it says it is. A condition that this machine cannot run is skipped with a sentence.
Compiled kernels lie in a cache of this run's own, so the user's is neither read nor written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = (
    "LADDER_MARCH", "LADDER_KERNELS", "LADDER_TEST_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS",
)  # fmt: skip
"""Variables that only a condition sets."""
COMPILER = re.compile(r"(.*-)?(cc|gcc|g\+\+|c\+\+|c89|c99|tcc|icc|icx|clang(\+\+)?)(-?[\d.]+)?")
LEVELS = {
    "x86-64-v2": {"sse4_2", "popcnt"},
    "x86-64-v3": {"avx2", "fma", "bmi2"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
"""What a processor of each level has, of which no lower level has all (as /proc/cpuinfo names it)."""


@dataclass(frozen=True)
class Condition:
    """says: what it is, for the table. environment: variables, on top of one thread. kernels: whether C kernels are
    there. needs: flags of the processor. aten: the instructions that torch's operators must say they use."""

    says: str
    environment: dict[str, str] = field(default_factory=dict)
    kernels: bool = True
    compiler: bool = True
    one_core: bool = False
    needs: frozenset[str] = frozenset()
    aten: str | None = None


def _target(march: str) -> Condition:
    return Condition(f"kernels for {march}", {"LADDER_MARCH": march}, needs=frozenset(LEVELS[march]))


V3 = frozenset(LEVELS["x86-64-v3"])
CONDITIONS = {
    "native": Condition("kernels for this processor, one thread", {"LADDER_MARCH": "native"}),
    "v2": _target("x86-64-v2"),
    "v3": _target("x86-64-v3"),
    "v4": _target("x86-64-v4"),
    "no-compiler": Condition("no C compiler", kernels=False, compiler=False),
    "no-kernels": Condition("LADDER_KERNELS=0", {"LADDER_KERNELS": "0"}, kernels=False),
    "four-threads": Condition("four threads", {"LADDER_TEST_THREADS": "4"}),
    "one-core": Condition("one core", one_core=True),
    "aten-default": Condition("torch's operators without AVX", {"ATEN_CPU_CAPABILITY": "default"}, aten="DEFAULT"),
    "aten-avx2": Condition("torch's operators with AVX2", {"ATEN_CPU_CAPABILITY": "avx2"}, needs=V3, aten="AVX2"),
    "library-sse": Condition(
        "oneDNN with SSE4.1, MKL's compatible path", {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
    ),
    "library-avx2": Condition("oneDNN and MKL with AVX2", {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}, needs=V3),
}


@dataclass(frozen=True)
class Outcome:
    """of: passed, failed and skipped tests; bad: names of the failed; why: of a condition that was not run, or not
    what it says."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    bad: tuple[str, ...] = ()
    why: str = ""
    fails: bool = False


def obstacle(c: Condition) -> str | None:
    """Why this machine cannot run a condition, in a sentence; None if it can."""
    if c.needs or c.aten:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return f"this processor is {platform.machine()}, not x86-64"
        if lacking := c.needs - _flags():
            return f"this processor has no {', '.join(sorted(lacking))}"
    if c.kernels and shutil.which(os.environ.get("CC", "cc")) is None:
        return "this machine has no C compiler"
    if c.one_core and not hasattr(os, "sched_setaffinity"):
        return "this system gives a process no single core"
    return None


def _flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[1].split()}


def without_compilers(path: str, into: Path) -> str:
    """A PATH with everything but C compilers: a directory that holds one is replaced by links to the rest of it."""
    kept = []
    for i, directory in enumerate(filter(os.path.isdir, path.split(os.pathsep))):
        names = os.listdir(directory)
        if not any(map(COMPILER.fullmatch, names)):
            kept.append(directory)
            continue
        links = into / str(i)
        links.mkdir()
        for name in names:
            if not COMPILER.fullmatch(name):
                (links / name).symlink_to(os.path.join(os.path.abspath(directory), name))
        kept.append(str(links))
    return os.pathsep.join(kept)


def environment(c: Condition, room: Path) -> dict[str, str]:
    """This process's, changed as the condition says. room: for its own cache and links."""
    plain = {k: v for k, v in os.environ.items() if k not in OURS}
    hub = plain.get("HF_HOME") or str(Path(plain.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    own = {"XDG_CACHE_HOME": str(room / "cache"), "HF_HOME": hub, "LADDER_TEST_THREADS": "1"}
    if not c.compiler:
        plain.pop("CC", None)
        own["PATH"] = without_compilers(plain["PATH"], Path(tempfile.mkdtemp(dir=room)))
    return plain | own | c.environment


SAYS = """
import json, torch
from ladder.kernels import library
print(json.dumps([library.lacking(), torch.backends.cpu.get_cpu_capability()]))
"""


def pretence(c: Condition, env: dict[str, str]) -> str | None:
    """Where a condition is not what it says, in a sentence."""
    done = subprocess.run([sys.executable, "-c", SAYS], env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return f"ladder.kernels ends with status {done.returncode}: {(done.stderr or '?').strip().splitlines()[-1]}"
    lacking, aten = json.loads(done.stdout.splitlines()[-1])
    if c.kernels and lacking:
        return f"there are no kernels: {lacking}"
    if not c.kernels and not lacking:
        return "there are kernels"
    return f"torch's operators use {aten}, not {c.aten}" if c.aten not in (None, aten) else None


ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def suite(name: str, room: Path, arguments: Sequence[str]) -> Outcome:
    """One condition's run. Its output lies in room as NAME.txt."""
    c = CONDITIONS[name]
    if why := obstacle(c):
        return Outcome(why=f"skipped: {why}")
    env = environment(c, room)
    if why := pretence(c, env):
        return Outcome(why=why, fails=True)
    begun, found = time.monotonic(), room / f"{name}.xml"
    start = [sys.executable, *(["-c", ON_ONE_CORE] if c.one_core else [])]
    plain = ["-m", "pytest", f"--junitxml={found}", "-o", "cache_dir=" + str(room / "pytest" / name), *arguments]
    with (room / f"{name}.txt").open("w") as out:
        status = subprocess.run([*start, *plain], env=env, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT).returncode
    seconds = time.monotonic() - begun
    if not found.exists():
        return Outcome(seconds=seconds, why=f"pytest ended with status {status} and no report", fails=True)
    cases = list(xml.parse(found).iter("testcase"))
    bad = [x for x in cases if x.find("failure") is not None or x.find("error") is not None]
    skipped = sum(x.find("skipped") is not None for x in cases)
    names = tuple(f"{x.get('classname', '').replace('.', '/')}.py::{x.get('name')}" for x in bad)
    why = f"pytest ended with status {status}" if status and not bad else ""
    return Outcome(len(cases) - len(bad) - skipped, len(bad), skipped, seconds, names, why, bool(status))


def line(name: str, o: Outcome) -> str:
    head = f"{name:<14} {CONDITIONS[name].says:<44}"
    if o.why and not o.passed + o.failed:
        return f"{head} {o.why}"
    return f"{head} {o.passed:>6} {o.failed:>6} {o.skipped:>7} {o.seconds:>7.0f}  {o.why}".rstrip()


def main() -> int:
    """The exit status."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("conditions", nargs="*", metavar="condition", help=", ".join(CONDITIONS))
    parser.add_argument("--jobs", type=int, default=1, help="conditions run beside each other")
    asked = parser.parse_args(words[:cut])
    if unknown := set(asked.conditions) - set(CONDITIONS):
        parser.error(f"no such condition: {', '.join(sorted(unknown))}; there are {', '.join(CONDITIONS)}")
    names = asked.conditions or list(CONDITIONS)
    room = Path(tempfile.mkdtemp(prefix="everywhere-"))
    print(f"output lies in {room}", flush=True)

    def one(name: str) -> Outcome:
        outcome = suite(name, room, words[cut + 1 :])
        print(line(name, outcome), *(f"    {bad}" for bad in outcome.bad), sep="\n", flush=True)
        return outcome

    with ThreadPoolExecutor(asked.jobs) as pool:
        outcomes = list(pool.map(one, names))
    print(f"\n{'condition':<59} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>7}")
    for name, outcome in zip(names, outcomes, strict=True):
        print(line(name, outcome), *(f"    {bad}" for bad in outcome.bad), sep="\n")
    return int(any(o.fails for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
