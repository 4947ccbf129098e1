"""One of our sides under torch's profiler: `run(work, options)` with the program and options of the side, as any side.

The profiler sees torch's operators but not what is called through ctypes: the compiled libraries' functions are wrapped
here, and the parts of the program that an operator's name does not tell (`categories.MARKS`) are marked, by replacing
attributes, so the program itself knows nothing of it. What is profiled begins behind the first step, which warms up.
"""

from __future__ import annotations

import importlib
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import categories, ours
from benchmarks.speed.categories import CATEGORIES, KERNEL, WHOLE
from torch.profiler import ProfilerActivity, profile, record_function

from ladder.attention.packed import PackedPlan
from ladder.decoding import sampler
from ladder.decoding.llama_torch import Shared
from ladder.decoding.sampler import NativeSampler
from ladder.engine.optim import Optimizer
from ladder.kernels import attend, decode, layers
from ladder.kernels.library import lacking

LIBRARIES = {"attend": attend, "layers": layers, "decode": decode}
LARGEST = 12
"""Items of the profile that are reported by name."""


class Watch:
    """The profiler, from `begin` to `end`, with what the system did meanwhile."""

    def __init__(self) -> None:
        self.profile = profile(activities=[ProfilerActivity.CPU], acc_events=True)
        self.whole = record_function(WHOLE)
        self.seconds, self.busy, self.faults = 0.0, 0.0, 0

    @property
    def running(self) -> bool:
        return self.seconds < 0

    def begin(self) -> None:
        self.profile.start()
        self.whole.__enter__()
        self.faults = -_faults()
        self.busy = -time.process_time()
        self.seconds = -time.perf_counter()

    def end(self) -> None:
        self.seconds += time.perf_counter()
        self.busy += time.process_time()
        self.faults += _faults()
        self.whole.__exit__(None, None, None)
        self.profile.stop()


def run(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    """options: "program" and its "options"; "kernels": whether the compiled ones are meant to run."""
    if options["kernels"] and lacking() is not None:
        raise RuntimeError(lacking())
    mark_program()
    mark_kernels()
    watch = Watch()
    inner, sizes = options["options"], Decoded(watch)
    n = watched(watch, inner)
    importlib.import_module(f"benchmarks.speed.{options['program']}").run(work, inner)
    made = shares(watch)
    return made | {
        "steps": n,
        "seconds": watch.seconds / n,
        "busy": watch.busy / n,
        "faults": round(watch.faults / n),
        "decoding": sizes.replayed(made["calls"].get(KERNEL + "step", 0)),
    }


def _faults() -> int:
    """Pages that this process got from the system."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


# ------------------------------------------------------------ what is profiled


def watched(watch: Watch, options: dict[str, Any]) -> int:
    """Lets the watch run over all steps but the first, or over the second call of the sampler; returns how many."""
    if "repetitions" in options:
        assert options["repetitions"] == 2
        _watch_sampler(watch)
        return 1
    _watch_training(watch)
    return options["steps"] - 1


def _watch_training(watch: Watch) -> None:
    train = ours.train

    def watching(*args: Any, steps: int, on_step: Callable[..., bool], **more: Any) -> int:
        def told(step: int, figures: dict[str, float]) -> bool:
            if step == 1:
                watch.begin()
            if step == steps:
                watch.end()
            return on_step(step, figures)

        return train(*args, steps=steps, on_step=told, **more)

    ours.train = watching


def _watch_sampler(watch: Watch) -> None:
    generate, calls = NativeSampler.generate, Counter[str]()

    def watching(self: NativeSampler, *args: Any) -> Any:
        calls["generate"] += 1
        if calls["generate"] != 2:
            return generate(self, *args)
        watch.begin()
        drawn = generate(self, *args)
        watch.end()
        return drawn

    NativeSampler.generate = watching  # pyright: ignore[reportAttributeAccessIssue]


# ------------------------------------------------------------ marks


def marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **more: Any) -> Any:
        with record_function(name):
            return function(*args, **more)

    return called


def mark_program() -> None:
    for owner, name, mark in (
        (Optimizer, "step", "profile::optimiser"),
        (PackedPlan, "attend", "profile::attention"),
        (Shared, "attend", "profile::attention"),
        (sampler, "draw", "profile::draw"),
    ):
        setattr(owner, name, marked(mark, getattr(owner, name)))


def mark_kernels() -> None:
    """Every function of the compiled libraries that does something, in place of itself."""
    for module in LIBRARIES.values():
        lib = module.kernels()
        for name in module.ARGUMENTS if lib is not None else ():
            function = getattr(lib, name)
            wrapped = marked(KERNEL + name, function) if function.restype is None else function
            wrapped.argtypes = function.argtypes  # pyright: ignore[reportFunctionMemberAccess]
            setattr(lib, name, wrapped)


class Decoded:
    """Which matrices a decoding step multiplied with how many rows: what its one call of C does not tell."""

    def __init__(self, watch: Watch) -> None:
        self.rows, self.packed = Counter[int](), list[decode.PackedMatrix]()
        step, begin, pack = decode.Step.__call__, decode.Arena.__init__, decode.Arena.pack

        def stepped(here: decode.Step, *args: Any) -> Any:
            self.rows[here.A] += watch.running
            return step(here, *args)

        def begun(here: decode.Arena, *args: Any) -> None:
            self.packed.clear()  # the weights of the call before
            begin(here, *args)

        def packing(here: decode.Arena, *args: Any) -> decode.PackedMatrix:
            self.packed.append(pack(here, *args))
            return self.packed[-1]

        replaced: tuple[tuple[Any, str, Any], ...] = (
            (decode.Step, "__call__", stepped), (decode.Arena, "__init__", begun), (decode.Arena, "pack", packing)
        )  # fmt: skip
        for owner, name, function in replaced:
            setattr(owner, name, function)

    def replayed(self, calls: int) -> dict[str, float]:
        """Steps, rows of one on average, and the seconds of their products alone: the same matrices in the same order,
        with as many rows, one after another, the best of three times."""
        seconds = sum(n * min(self._products(A) for _ in range(3)) for A, n in self.rows.items() if n)
        steps = sum(self.rows.values())
        assert steps == calls, "a step was not one call of C"
        drawn = sum(A * n for A, n in self.rows.items())
        return {"steps": steps, "rows": drawn / max(1, steps), "product_seconds": seconds}

    def _products(self, A: int) -> float:
        """Seconds of one step's products."""
        inputs = {packed.K: torch.randn(A, packed.K) for packed in self.packed}
        begun = time.perf_counter()
        for packed in self.packed:
            packed.multiply(inputs[packed.K], None)
        return time.perf_counter() - begun


# ------------------------------------------------------------ shares


def shares(watch: Watch) -> dict[str, Any]:
    """Self time by category and of the largest items by name, as shares of the whole; calls by name."""
    events: Any = watch.profile.events()
    inside = [e for e in events if _inside(e)]
    by_category, by_name, calls = Counter[str](), Counter[tuple[str, str]](), Counter[str]()
    for e in inside:
        where = categories.category(e)
        by_category[where] += e.self_cpu_time_total
        by_name[e.name, where] += e.self_cpu_time_total
        calls[e.name] += 1
    total = sum(by_category.values())
    return {
        "shares": {c: by_category[c] / total for c in CATEGORIES},
        "largest": [[name, where, t / total, calls[name]] for (name, where), t in by_name.most_common(LARGEST)],
        "covered": total / 1e6 / watch.seconds,
        "calls": {name: n for name, n in calls.items() if name.startswith(KERNEL)},
    }


def _inside(event: Any) -> bool:
    """Whether it happened in the stretch that is watched."""
    while event is not None:
        if event.name == WHOLE:
            return True
        event = event.cpu_parent
    return False
