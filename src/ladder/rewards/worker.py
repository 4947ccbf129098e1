"""The child that runs reward functions which are not ours: `python -P -m ladder.rewards.worker`.

It speaks JSON lines over its own copies of stdin and stdout (what the function prints goes to stderr), one request at
a time, in the main thread, so a function may use signals. It imports the standard library only, and starts in
milliseconds. The parent (`child.py`) holds the deadline and kills it. First line: what to load; then one line a group.

Three signatures are understood, told apart by their parameters' names:
  TRL    f(completions, prompts=, completion_ids=, **columns) -> list[float | None]
  verl   compute_score(data_source, solution_str, ground_truth, extra_info) -> float | {"score": float, ...}
  ours   f(group) -> list[float | {"score": float, ...}], each answer with .text .stop .length .task.answer ...

Left out: isolation. A reward function is the user's own trusted code; text a model wrote is data here and never runs.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import math
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NoReturn

Style = Literal["trl", "verl", "ours"]
Item = dict[str, Any]

SIGNATURES = (
    "TRL's f(completions, prompts, completion_ids, **columns), verl's "
    "compute_score(data_source, solution_str, ground_truth, extra_info), or f(group)"
)


class Refused(Exception):
    """The function cannot be used; the message is for the user."""


# ---------------------------------------------------------------- loading


def load(target: str) -> Callable[..., Any]:
    """The function that `pkg.mod:fn` or `file.py:fn` names. Raises Refused."""
    where, found, name = target.rpartition(":")
    if not found or not where or not name:
        raise Refused(f"{target!r} names no function; write 'package.module:function' or 'file.py:function'")
    module = _from_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    if name not in vars(module):
        raise Refused(f"{where} has no function {name!r}")
    function = vars(module)[name]
    if not callable(function):
        raise Refused(f"{name!r} in {where} is a {type(function).__name__}, not a function")
    return function


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise Refused(f"no file {str(path)!r}")
    sys.path.append(str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Refused(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def style(function: Callable[..., Any], given: set[str]) -> Style:
    """Whose signature this is, by its parameters' names. Raises Refused.

    given: names of the keyword arguments that the recipe itself gives to every call.
    """
    params = inspect.signature(function).parameters
    required = {
        n for n, p in params.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    } - given
    if {"solution_str", "ground_truth"} <= set(params):
        kind, known = "verl", {"data_source", "solution_str", "ground_truth", "extra_info"}
    elif "completions" in params:
        absent = required & {"trainer_state", "environments"}
        if absent:
            raise Refused(f"asks for TRL's {', '.join(sorted(absent))}, which there is none of here")
        kind, known = "trl", required
    elif "group" in params:
        kind, known = "ours", {"group"}
    else:
        raise Refused(f"its parameters ({', '.join(params)}) are none of the known signatures: {SIGNATURES}")
    if required - known:
        raise Refused(f"asks for {', '.join(sorted(required - known))}, which the {kind} signature does not have")
    return kind  # type: ignore[return-value]


# ---------------------------------------------------------------- calling


class Call:
    """One loaded function, called in its own style. `extra` are the recipe's keyword arguments, given to every call."""

    def __init__(self, function: Callable[..., Any], kind: Style, extra: dict[str, Any]) -> None:
        self.function, self.kind, self.extra = function, kind, extra
        params = inspect.signature(function).parameters
        self.params = set(params)
        self.anything = any(p.kind is p.VAR_KEYWORD for p in params.values())

    def __call__(self, items: list[Item]) -> list[dict[str, Any]]:
        if self.kind == "verl":
            return [entry(self._run(self._verl(item))) for item in items]
        values = self._run(self._trl(items) if self.kind == "trl" else {"group": [answer(i) for i in items]})
        if hasattr(values, "tolist"):  # numpy arrays and tensors
            values = values.tolist()
        if not isinstance(values, list | tuple):
            return [{"invalid": f"returned {type(values).__name__}, not a list"}] * len(items)
        return [entry(v) for v in values]

    def _run(self, arguments: dict[str, Any]) -> Any:
        accepted = {k: v for k, v in arguments.items() if self.anything or k in self.params}
        value = self.function(**accepted, **self.extra)
        return asyncio.run(_settle(value)) if inspect.isawaitable(value) else value

    @staticmethod
    def _verl(item: Item) -> dict[str, Any]:
        meta = item["task"]["meta"]
        return {
            "data_source": meta.get("data_source", ""),
            "solution_str": item["text"],
            "ground_truth": item["task"]["answer"],
            "extra_info": meta.get("extra_info", meta),
        }

    @staticmethod
    def _trl(items: list[Item]) -> dict[str, Any]:
        prompts = [i["task"]["prompt"] for i in items]
        chat = isinstance(prompts[0], list)
        names = set.intersection(*(set(i["task"]["meta"]) for i in items))
        columns = {name: [i["task"]["meta"][name] for i in items] for name in sorted(names)}
        return columns | {
            "answer": [i["task"]["answer"] for i in items],
            "prompts": prompts,
            "completions": [[{"role": "assistant", "content": i["text"]}] if chat else i["text"] for i in items],
            "completion_ids": [i["completion_ids"] for i in items],
            "log_extra": lambda *_: None,
            "log_metric": lambda *_: None,
        }


async def _settle(value: Any) -> Any:
    return await value


def answer(item: Item) -> SimpleNamespace:
    """What our own signature sees of a rollout: the same names, without the tokens' tensors and without torch."""
    return SimpleNamespace(**{**item, "task": SimpleNamespace(**item["task"])})


def entry(value: Any) -> dict[str, Any]:
    """A returned value as JSON: {"value", "parts"} or {"invalid": why}."""
    if isinstance(value, dict):
        if "score" not in value:
            return {"invalid": f"returned a dict without 'score' (keys: {', '.join(map(str, value))})"}
        if value["score"] is None and "why" in value:
            return {"invalid": str(value["why"])}
        parts = {str(k): _number(v) for k, v in value.items() if k != "score"}
        return entry(value["score"]) | {"parts": {k: v for k, v in parts.items() if v is not None}}
    number = _number(value)
    return (
        {"invalid": f"returned {value!r:.60} ({type(value).__name__}), not a number"}
        if number is None
        else {"value": number}
    )


def _number(value: Any) -> float | None:
    """A finite float, or None. NaN and infinity are no numbers here: JSON has none, and no reward is one."""
    if hasattr(value, "item") and not isinstance(value, int | float):  # numpy and torch scalars
        value = value.item()
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


# ---------------------------------------------------------------- the process


def _die_with_parent() -> None:
    """Ends this process once its parent is gone, also while the function hangs."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(3)


def _limit(memory_mb: int) -> None:
    if memory_mb:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))


def main() -> NoReturn:
    me = os.getpid()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def reply(message: dict[str, Any]) -> None:
        if os.getpid() != me:  # the function forked, and this is the copy
            os._exit(0)
        data = (json.dumps(message, allow_nan=False) + "\n").encode()
        while data:
            data = data[os.write(replies, data) :]

    hello = json.loads(requests.readline())
    sys.path.append(os.getcwd())
    try:
        _limit(hello["memory_mb"])
        function = load(hello["target"])
        call = Call(function, style(function, set(hello["kwargs"])), hello["kwargs"])
    except Refused as err:
        reply({"id": 0, "refused": str(err)})
        os._exit(1)
    # The user's module may raise anything while it is imported; the parent turns it into a UserError.
    except BaseException as err:  # noqa: BLE001
        missing = err.name if isinstance(err, ModuleNotFoundError) else None
        reply({"id": 0, "refused": f"{_last(err)}", "missing": missing})
        os._exit(1)
    reply({"id": 0, "style": call.kind})
    for line in requests:
        request = json.loads(line)
        try:
            message = {"results": call(request["items"])}
        # The process boundary: whatever the function raises (SystemExit too) is reported, never guessed at.
        except BaseException as err:  # noqa: BLE001
            message = {"error": _last(err), "fatal": isinstance(err, MemoryError)}
        reply({"id": request["id"]} | message)
    os._exit(0)


def _last(err: BaseException) -> str:
    """`file:line: TypeName: message` of where it was raised."""
    frames = traceback.extract_tb(err.__traceback__)
    inside = [f for f in frames if Path(f.filename).name != Path(__file__).name and "importlib" not in f.filename]
    place = f"{Path(inside[-1].filename).name}:{inside[-1].lineno}: " if inside else ""
    text = str(err)
    return f"{place}{type(err).__name__}" + (f": {text:.300}" if text else "")


if __name__ == "__main__":
    main()
