"""The parent's side of a reward worker: starts it, asks, holds the deadline, kills it, starts the next one.

The child is `ladder.rewards.worker` in a session of its own (Ctrl-C does not reach it; a kill reaches what it
forked). A hang, a death or nonsense on the wire is a `ChildFailure` for the call at hand; the next call gets a fresh
child. Nothing but JSON crosses the pipes.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from ladder.base.errors import UserError, missing_extra
from ladder.contract.rollouts import InfraError, Invalid, Outcome, Rollout, Score
from ladder.rewards.guarded import outcome

REPLY_LIMIT = 32 << 20
"""Bytes of one reply; more is a runaway."""
LOAD_S = 120.0
"""Seconds the function's module may take to import."""


class ChildFailure(RuntimeError):
    """The judge failed: it hung, died, raised, or answered nonsense."""


class Child:
    """A persistent worker for one function, `target` as "pkg.mod:fn" or "file.py:fn".

    deadline_s: seconds for one call (a group under TRL's and our signature, an answer under verl's). memory_mb: data
    segment limit of the child (0: none). kwargs: keyword arguments of every call. Safe to use from several threads.
    """

    def __init__(
        self, target: str, deadline_s: float, *, memory_mb: int = 4096, kwargs: dict[str, Any] | None = None
    ) -> None:
        self.target, self.deadline_s, self.memory_mb, self.kwargs = target, deadline_s, memory_mb, kwargs or {}
        self.style = ""
        self.starts = 0
        self._proc: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._sent = 0
        self._said = b""  # the end of what the child wrote to stderr
        self._read = b""

    # ------------------------------------------------------------ life

    def start(self, extra: tuple[str, str, str] | None = None) -> None:
        """Starts the child if none runs. extra: (package, extra, why) of an optional package it needs.

        Raises UserError when the function cannot be loaded or has an unknown signature.
        """
        with self._lock:
            if self._proc is None:
                self._spawn(extra)

    def close(self) -> None:
        """Kills the child, if one runs."""
        with self._lock:
            self._kill()

    def _spawn(self, extra: tuple[str, str, str] | None) -> None:
        self._proc = subprocess.Popen(
            [sys.executable, "-P", "-m", "ladder.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        weakref.finalize(self, _end, self._proc)
        self.starts += 1
        self._said = self._read = b""
        for pipe in (self._proc.stdin, self._proc.stdout, self._proc.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        hello = {"id": 0, "target": self.target, "memory_mb": self.memory_mb, "kwargs": self.kwargs}
        try:
            reply = self._exchange(hello, LOAD_S)
        except ChildFailure as err:
            raise UserError(f"the reward function {self.target!r} could not be loaded: it {err}") from err
        if "refused" in reply:
            self._kill()
            if extra is not None and reply.get("missing") == extra[0]:
                raise missing_extra(*extra)
            raise UserError(f"the reward function {self.target!r} cannot be used: {reply['refused']}")
        self.style = str(reply["style"])

    def _kill(self) -> int | None:
        """The exit status, once the child and what it forked are gone."""
        if self._proc is None:
            return None
        proc, self._proc = self._proc, None
        _end(proc)
        return proc.returncode

    # ------------------------------------------------------------ asking

    def judge(self, rollouts: Sequence[Rollout], name: str) -> list[Outcome]:
        """One outcome per rollout; a failure is an InfraError for those it concerns, a wrong count Invalid for all."""
        try:
            self.start()
        except UserError as err:
            return [InfraError(f"{name}: {err}")] * len(rollouts)
        if self.style == "verl":
            return [self._judge([r], name)[0] for r in rollouts]
        return self._judge(rollouts, name)

    def _judge(self, rollouts: Sequence[Rollout], name: str) -> list[Outcome]:
        try:
            results = self.ask([_item(r) for r in rollouts])
        except (ChildFailure, UserError) as err:
            return [InfraError(f"{name}: {err}")] * len(rollouts)
        if len(results) != len(rollouts):
            return [Invalid(f"{name}: returned {len(results)} values for {len(rollouts)} answers")] * len(rollouts)
        return [_outcome(r, name) for r in results]

    def ask(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The worker's entries for the items. Raises ChildFailure; a child that hung or died is already gone then."""
        with self._lock:
            if self._proc is None:
                self._spawn(None)
            self._sent += 1
            reply = self._exchange({"id": self._sent, "items": items}, self.deadline_s)
            if reply.get("fatal"):
                self._kill()
            if "error" in reply:
                raise ChildFailure(f"raised {reply['error']}")
            return reply["results"]

    def _exchange(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Writes one line and reads the line that answers it. Raises ChildFailure past the deadline or on death."""
        proc = self._proc
        assert proc is not None and proc.stdin and proc.stdout and proc.stderr
        data, end = (json.dumps(message) + "\n").encode(), time.monotonic() + seconds
        with selectors.DefaultSelector() as pipes:
            pipes.register(proc.stdin, selectors.EVENT_WRITE)
            pipes.register(proc.stdout, selectors.EVENT_READ)
            pipes.register(proc.stderr, selectors.EVENT_READ)
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    self._kill()
                    raise ChildFailure(f"took longer than {seconds:g} s and was killed{self._last_words()}")
                for ready, _ in pipes.select(left):
                    if ready.fileobj is proc.stdin:
                        data = self._write(proc, data)
                        if not data:
                            pipes.unregister(proc.stdin)
                    elif ready.fileobj is proc.stderr:
                        text = os.read(proc.stderr.fileno(), 65536)
                        self._said = (self._said + text)[-2000:]
                        if not text:
                            pipes.unregister(proc.stderr)
                    else:
                        reply = self._take(proc, message["id"])
                        if reply is not None:
                            return reply

    def _write(self, proc: subprocess.Popen[bytes], data: bytes) -> bytes:
        """What is left of data after one write."""
        assert proc.stdin is not None
        try:
            return data[os.write(proc.stdin.fileno(), data[:65536]) :]
        except BrokenPipeError:
            return b""  # it is dead; the end of its stdout says so

    def _take(self, proc: subprocess.Popen[bytes], wanted: int) -> dict[str, Any] | None:
        """The reply with the wanted id, once its line is complete."""
        assert proc.stdout is not None
        got = os.read(proc.stdout.fileno(), 65536)
        self._read += got
        if not got or len(self._read) > REPLY_LIMIT:
            status = self._kill()
            raise ChildFailure((_death(status) if not got else "answered without end") + self._last_words())
        *lines, self._read = self._read.split(b"\n")
        for line in lines:
            try:
                reply = json.loads(line)
            except ValueError as err:
                self._kill()
                raise ChildFailure(f"answered what is not JSON: {line[:80]!r}") from err
            if isinstance(reply, dict) and reply.get("id") == wanted:
                return reply
        return None

    def _last_words(self) -> str:
        lines = self._said.decode("utf-8", "replace").strip().splitlines()
        return f" (it had printed: {lines[-1][:200]})" if lines else ""


def _end(proc: subprocess.Popen[bytes]) -> None:
    """Kills a worker with all it forked, and collects it."""
    if proc.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself in between
            os.killpg(proc.pid, signal.SIGKILL)
        proc.wait()
    for pipe in (proc.stdin, proc.stdout, proc.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _death(status: int | None) -> str:
    if status is not None and status < 0:
        return f"died of {signal.Signals(-status).name}"
    return f"exited with status {status} instead of answering"


def _item(rollout: Rollout) -> dict[str, Any]:
    """What a worker sees of a rollout."""
    task = rollout.task
    begin = rollout.mask.index(True) if True in rollout.mask else len(rollout.tokens)
    return {
        "text": rollout.text,
        "stop": rollout.stop,
        "length": rollout.length,
        "completion_ids": rollout.tokens[begin:],
        "task": {"id": task.id, "prompt": task.prompt, "answer": task.answer, "meta": task.meta},
    }


def _outcome(entry: dict[str, Any], name: str) -> Outcome:
    if "invalid" in entry:
        return Invalid(f"{name}: {entry['invalid']}")
    value = float(entry["value"])
    parts = {f"{name}/{k}": float(v) for k, v in entry.get("parts", {}).items()}
    return outcome(Score(value, {name: value} | parts), name)
