"""The worker process that runs users' reward functions: `python -P -m ladder.rewards.worker`.

It reads requests and writes replies as JSON lines over duplicates of stdin and stdout (what the function prints goes
to stderr). It handles one request at a time, in the main thread, so that a function may use signals. It imports the
standard library only, so it starts in milliseconds. The parent (`child.py`) enforces the deadline and kills it. The
first request names the function to load; each further one is a group of rollouts.

Three signatures are accepted, told apart by the names of their parameters:
  TRL    f(completions, prompts=, completion_ids=, **columns) -> list[float | None]
  verl   compute_score(data_source, solution_str, ground_truth, extra_info) -> float | {"score": float, ...}
  ours   f(group) -> list[float | {"score": float, ...}], each item with .text .stop .length .task.answer ...

Left out: isolation. A reward function is trusted code of the user; a completion is data here and is never executed.
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
    """The function cannot be loaded or has an unknown signature; the message is for the user."""


# ---------------------------------------------------------------- loading


def load(target: str) -> Callable[..., Any]:
    """The function named by `target`, "pkg.mod:fn" or "file.py:fn". Raises Refused."""
    location, separator, name = target.rpartition(":")
    if not separator or not location or not name:
        raise Refused(f"{target!r} names no function; write 'package.module:function' or 'file.py:function'")
    module = _import_file(Path(location)) if location.endswith(".py") else importlib.import_module(location)
    if name not in vars(module):
        raise Refused(f"{location} has no function {name!r}")
    function = vars(module)[name]
    if not callable(function):
        raise Refused(f"{name!r} in {location} is a {type(function).__name__}, not a function")
    return function


def _import_file(path: Path) -> Any:
    """The module in a Python file, registered under the file's stem. Raises Refused."""
    if not path.is_file():
        raise Refused(f"there is no file {str(path)!r}")
    sys.path.append(str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Refused(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def style(function: Callable[..., Any], given: set[str]) -> Style:
    """The signature of a function, by the names of its parameters. Raises Refused.

    given: names of the keyword arguments that the recipe passes to every call.
    """
    params = inspect.signature(function).parameters
    required = {
        n for n, p in params.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    } - given
    if {"solution_str", "ground_truth"} <= set(params):
        kind, known = "verl", {"data_source", "solution_str", "ground_truth", "extra_info"}
    elif "completions" in params:
        unavailable = required & {"trainer_state", "environments"}
        if unavailable:
            raise Refused(f"it requires TRL's {', '.join(sorted(unavailable))}, which is not available here")
        kind, known = "trl", required
    elif "group" in params:
        kind, known = "ours", {"group"}
    else:
        raise Refused(f"its parameters ({', '.join(params)}) match none of the known signatures: {SIGNATURES}")
    if required - known:
        raise Refused(f"it requires {', '.join(sorted(required - known))}, which the {kind} signature does not have")
    return kind  # type: ignore[return-value]


# ---------------------------------------------------------------- calling


class Call:
    """A loaded function, called with the arguments of its signature.

    kind: the signature. extra: the recipe's keyword arguments, passed to every call. params: names of its parameters.
    anything: whether it takes arbitrary keyword arguments.
    """

    def __init__(self, function: Callable[..., Any], kind: Style, extra: dict[str, Any]) -> None:
        self.function, self.kind, self.extra = function, kind, extra
        params = inspect.signature(function).parameters
        self.params = set(params)
        self.anything = any(p.kind is p.VAR_KEYWORD for p in params.values())

    def __call__(self, items: list[Item]) -> list[dict[str, Any]]:
        """One result per item, see `entry`; a return value that is not a list is one result "invalid" for each."""
        if self.kind == "verl":
            return [entry(self._run(self._verl_arguments(item))) for item in items]
        values = self._run(self._trl_arguments(items) if self.kind == "trl" else {"group": [answer(i) for i in items]})
        if hasattr(values, "tolist"):  # numpy arrays and tensors
            values = values.tolist()
        if not isinstance(values, list | tuple):
            return [{"invalid": f"returned {type(values).__name__}, not a list"}] * len(items)
        return [entry(v) for v in values]

    def _run(self, arguments: dict[str, Any]) -> Any:
        """Calls the function with those of `arguments` that it accepts; awaits a coroutine."""
        accepted = {k: v for k, v in arguments.items() if self.anything or k in self.params}
        value = self.function(**accepted, **self.extra)
        return asyncio.run(_await_value(value)) if inspect.isawaitable(value) else value

    @staticmethod
    def _verl_arguments(item: Item) -> dict[str, Any]:
        meta = item["task"]["meta"]
        return {
            "data_source": meta.get("data_source", ""),
            "solution_str": item["text"],
            "ground_truth": item["task"]["answer"],
            "extra_info": meta.get("extra_info", meta),
        }

    @staticmethod
    def _trl_arguments(items: list[Item]) -> dict[str, Any]:
        prompts = [i["task"]["prompt"] for i in items]
        is_chat = isinstance(prompts[0], list)
        names = set.intersection(*(set(i["task"]["meta"]) for i in items))
        columns = {name: [i["task"]["meta"][name] for i in items] for name in sorted(names)}
        return columns | {
            "answer": [i["task"]["answer"] for i in items],
            "prompts": prompts,
            "completions": [[{"role": "assistant", "content": i["text"]}] if is_chat else i["text"] for i in items],
            "completion_ids": [i["completion_ids"] for i in items],
            "log_extra": lambda *_: None,
            "log_metric": lambda *_: None,
        }


async def _await_value(value: Any) -> Any:
    return await value


def answer(item: Item) -> SimpleNamespace:
    """An item for our own signature: attributes named as those of `Rollout`, without torch."""
    return SimpleNamespace(**{**item, "task": SimpleNamespace(**item["task"])})


def entry(value: Any) -> dict[str, Any]:
    """The JSON-able result of one returned value: {"value", "parts"} or {"invalid": reason}."""
    if isinstance(value, dict):
        if "score" not in value:
            return {"invalid": f"returned a dict without 'score' (keys: {', '.join(map(str, value))})"}
        if value["score"] is None and "why" in value:
            return {"invalid": str(value["why"])}
        parts = {str(k): _finite_float(v) for k, v in value.items() if k != "score"}
        return entry(value["score"]) | {"parts": {k: v for k, v in parts.items() if v is not None}}
    number = _finite_float(value)
    return (
        {"invalid": f"returned {value!r:.60} ({type(value).__name__}), not a number"}
        if number is None
        else {"value": number}
    )


def _finite_float(value: Any) -> float | None:
    """The value as a finite float, otherwise None. NaN and infinity are excluded: JSON has no such numbers, and a
    reward must be finite."""
    if hasattr(value, "item") and not isinstance(value, int | float):  # numpy and torch scalars
        value = value.item()
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


# ---------------------------------------------------------------- process


def _exit_with_parent() -> None:
    """Exits this process when its parent has exited, even while the function hangs. Runs in a thread."""
    parent_pid = os.getppid()
    while os.getppid() == parent_pid:
        time.sleep(1.0)
    os._exit(3)


def _limit_memory(memory_mb: int) -> None:
    """Limits the data segment of this process, in MiB; 0 sets no limit."""
    if memory_mb:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))


def main() -> NoReturn:
    """Loads the function that the first request names, then answers requests until stdin is closed."""
    worker_pid = os.getpid()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    def reply(message: dict[str, Any]) -> None:
        if os.getpid() != worker_pid:  # the function forked and this is the fork, which must not reply
            os._exit(0)
        data = (json.dumps(message, allow_nan=False) + "\n").encode()
        while data:
            data = data[os.write(replies, data) :]

    load_request = json.loads(requests.readline())
    sys.path.append(os.getcwd())
    try:
        _limit_memory(load_request["memory_mb"])
        function = load(load_request["target"])
        kwargs = load_request["kwargs"]
        call = Call(function, style(function, set(kwargs)), kwargs)
    except Refused as err:
        reply({"id": 0, "refused": str(err)})
        os._exit(1)
    # Importing the user's module may raise anything; the parent turns it into a UserError.
    except BaseException as err:  # noqa: BLE001
        missing = err.name if isinstance(err, ModuleNotFoundError) else None
        reply({"id": 0, "refused": f"{_describe(err)}", "missing": missing})
        os._exit(1)
    reply({"id": 0, "style": call.kind})
    for line in requests:
        request = json.loads(line)
        try:
            message = {"results": call(request["items"])}
        # The process boundary: whatever the function raises, SystemExit included, is reported to the parent.
        except BaseException as err:  # noqa: BLE001
            message = {"error": _describe(err), "fatal": isinstance(err, MemoryError)}
        reply({"id": request["id"]} | message)
    os._exit(0)


def _describe(err: BaseException) -> str:
    """`file:line: TypeName: message`, where file and line are the innermost frame outside this file and importlib."""
    frames = traceback.extract_tb(err.__traceback__)
    user_frames = [f for f in frames if Path(f.filename).name != Path(__file__).name and "importlib" not in f.filename]
    location = f"{Path(user_frames[-1].filename).name}:{user_frames[-1].lineno}: " if user_frames else ""
    message = str(err)
    return f"{location}{type(err).__name__}" + (f": {message:.300}" if message else "")


if __name__ == "__main__":
    main()
