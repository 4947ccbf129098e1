"""A CUDA graph on the processor, for tests: the operators of one run, repeated on the very memory that they had.

What a real capture bakes in is baked in here too: numbers that the host decided, shapes, and where every tensor lies.
Operators that would make the host wait for the device are refused, as a capture refuses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "masked_select", "equal")
"""Operators whose result the host has to see, or that bring something from it."""


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITS, f"a capture must not contain {name}"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class Graph:
    """Has what is used of `torch.cuda.CUDAGraph`."""

    def __init__(self, step: Callable[[], None]) -> None:
        recorder = Recorder()
        with recorder:
            step()
        self.calls, self.replays = recorder.calls, 0

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    assert old.shape == new.shape
                    old.copy_(new)

    def pool(self) -> tuple[int, int]:
        return (0, 1)


def capture(step: Callable[[], None], others: Iterable[Any]) -> Graph:
    """As `graphed.capture`, but for the recorded run, which computes here as well."""
    step()
    return Graph(step)


def devices(monkeypatch: Any, module: Any, graphs: list[Graph]) -> None:
    """Lets `module` (rollout.graphed) capture on the processor; `graphs` gets every graph."""

    def kept(step: Callable[[], None], others: Iterable[Any]) -> Graph:
        graphs.append(capture(step, others))
        return graphs[-1]

    monkeypatch.setattr(module, "capture", kept)
    plain = module.Graphed.__init__

    def init(self: Any, *args: Any) -> None:
        plain(self, *args)
        self.captures = True

    monkeypatch.setattr(module.Graphed, "__init__", init)
    monkeypatch.setattr(torch.cuda, "device", _Nothing)


class _Nothing:
    def __init__(self, _: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass
