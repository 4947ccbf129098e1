"""The parent's side of a reward worker process: starts it, sends requests, enforces the deadline, kills, restarts.

The child process runs `ladder.rewards.worker` in its own session, so Ctrl-C does not reach it and killing the process
group also kills what it forked. A call that exceeds the deadline, a dead child or an unreadable reply raises
`ChildFailure` for that call; the next call starts a new child. Only JSON crosses the pipes.
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
"""Most bytes of one reply; a longer one is treated as output without end."""
LOAD_S = 120.0
"""Seconds within which the child must import the module of the reward function."""


class ChildFailure(RuntimeError):
    """A call to the child failed: it hung, died, raised, or sent an unreadable reply."""


class Child:
    """A persistent worker process for one reward function. Safe to use from several threads.

    target: "pkg.mod:fn" or "file.py:fn". deadline_s: seconds for one call (a group under TRL's and our signature, one
    completion under verl's). memory_mb: data-segment limit of the child in MiB (0: none). kwargs: keyword arguments
    passed to every call. style: the function's signature ("trl", "verl", "ours"), known once started. starts: child
    processes started so far.
    """

    def __init__(
        self, target: str, deadline_s: float, *, memory_mb: int = 4096, kwargs: dict[str, Any] | None = None
    ) -> None:
        self.target, self.deadline_s, self.memory_mb, self.kwargs = target, deadline_s, memory_mb, kwargs or {}
        self.style = ""
        self.starts = 0
        self._proc: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._requests_sent = 0
        self._stderr_tail = b""
        self._unparsed = b""  # bytes of an incomplete line read from stdout

    # ------------------------------------------------------------ starting and killing

    def start(self, extra: tuple[str, str, str] | None = None) -> None:
        """Starts the child unless one is running. extra: (package, extra, reason) of an optional package it needs.

        Raises UserError when the function cannot be loaded or has an unknown signature.
        """
        with self._lock:
            if self._proc is None:
                self._spawn(extra)

    def close(self) -> None:
        """Kills the child if one is running."""
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
        weakref.finalize(self, _terminate, self._proc)
        self.starts += 1
        self._stderr_tail = self._unparsed = b""
        for pipe in (self._proc.stdin, self._proc.stdout, self._proc.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        load_request = {"id": 0, "target": self.target, "memory_mb": self.memory_mb, "kwargs": self.kwargs}
        try:
            reply = self._exchange(load_request, LOAD_S)
        except ChildFailure as err:
            raise UserError(f"the reward function {self.target!r} could not be loaded: it {err}") from err
        if "refused" in reply:
            self._kill()
            if extra is not None and reply.get("missing") == extra[0]:
                raise missing_extra(*extra)
            raise UserError(f"the reward function {self.target!r} cannot be used: {reply['refused']}")
        self.style = str(reply["style"])

    def _kill(self) -> int | None:
        """Kills the child and what it forked. Returns the exit status, None when no child was running."""
        if self._proc is None:
            return None
        proc, self._proc = self._proc, None
        _terminate(proc)
        return proc.returncode

    # ------------------------------------------------------------ calling

    def judge(self, rollouts: Sequence[Rollout], name: str) -> list[Outcome]:
        """One outcome per rollout. name: of the reward, in messages and components.

        A failed call is an InfraError for its rollouts; a wrong number of values is Invalid for all of them.
        """
        try:
            self.start()
        except UserError as err:
            return [InfraError(f"{name}: {err}")] * len(rollouts)
        if self.style == "verl":
            return [self._judge_once([r], name)[0] for r in rollouts]
        return self._judge_once(rollouts, name)

    def _judge_once(self, rollouts: Sequence[Rollout], name: str) -> list[Outcome]:
        """As `judge`, in one call to the child."""
        try:
            results = self.ask([_as_item(r) for r in rollouts])
        except (ChildFailure, UserError) as err:
            return [InfraError(f"{name}: {err}")] * len(rollouts)
        if len(results) != len(rollouts):
            return [Invalid(f"{name}: returned {len(results)} values for {len(rollouts)} answers")] * len(rollouts)
        return [_as_outcome(r, name) for r in results]

    def ask(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The worker's result for each item. Raises ChildFailure; the child has then been killed if it hung or died."""
        with self._lock:
            if self._proc is None:
                self._spawn(None)
            self._requests_sent += 1
            reply = self._exchange({"id": self._requests_sent, "items": items}, self.deadline_s)
            if reply.get("fatal"):
                self._kill()
            if "error" in reply:
                raise ChildFailure(f"raised {reply['error']}")
            return reply["results"]

    def _exchange(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Writes `message` as one line and returns the reply to it. Raises ChildFailure after `seconds`, or when the
        child dies."""
        proc = self._proc
        assert proc is not None and proc.stdin and proc.stdout and proc.stderr
        data, deadline = (json.dumps(message) + "\n").encode(), time.monotonic() + seconds
        with selectors.DefaultSelector() as pipes:
            pipes.register(proc.stdin, selectors.EVENT_WRITE)
            pipes.register(proc.stdout, selectors.EVENT_READ)
            pipes.register(proc.stderr, selectors.EVENT_READ)
            while True:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    self._kill()
                    raise ChildFailure(f"took longer than {seconds:g} s and was killed{self._last_stderr_line()}")
                for ready, _ in pipes.select(remaining):
                    if ready.fileobj is proc.stdin:
                        data = self._write(proc, data)
                        if not data:
                            pipes.unregister(proc.stdin)
                    elif ready.fileobj is proc.stderr:
                        chunk = os.read(proc.stderr.fileno(), 65536)
                        self._stderr_tail = (self._stderr_tail + chunk)[-2000:]
                        if not chunk:
                            pipes.unregister(proc.stderr)
                    else:
                        reply = self._read_reply(proc, message["id"])
                        if reply is not None:
                            return reply

    def _write(self, proc: subprocess.Popen[bytes], data: bytes) -> bytes:
        """Writes a part of `data` to the child's stdin and returns the rest."""
        assert proc.stdin is not None
        try:
            return data[os.write(proc.stdin.fileno(), data[:65536]) :]
        except BrokenPipeError:
            return b""  # the child is dead, which the end of its stdout will report

    def _read_reply(self, proc: subprocess.Popen[bytes], request_id: int) -> dict[str, Any] | None:
        """Reads from the child's stdout once. Returns the reply to `request_id`, None while its line is incomplete."""
        assert proc.stdout is not None
        chunk = os.read(proc.stdout.fileno(), 65536)
        self._unparsed += chunk
        if not chunk or len(self._unparsed) > REPLY_LIMIT:
            status = self._kill()
            reason = _exit_reason(status) if not chunk else f"sent a reply longer than {REPLY_LIMIT >> 20} MiB"
            raise ChildFailure(reason + self._last_stderr_line())
        *lines, self._unparsed = self._unparsed.split(b"\n")
        for line in lines:
            try:
                reply = json.loads(line)
            except ValueError as err:
                self._kill()
                raise ChildFailure(f"sent a reply that is not JSON: {line[:80]!r}") from err
            if isinstance(reply, dict) and reply.get("id") == request_id:
                return reply
        return None

    def _last_stderr_line(self) -> str:
        """The last line the child wrote to stderr, as the end of a message; empty when it wrote none."""
        lines = self._stderr_tail.decode("utf-8", "replace").strip().splitlines()
        return f" (it had printed: {lines[-1][:200]})" if lines else ""


def _terminate(proc: subprocess.Popen[bytes]) -> None:
    """Kills a worker and what it forked, waits for it, and closes its pipes."""
    if proc.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # the worker exited after poll()
            os.killpg(proc.pid, signal.SIGKILL)
        proc.wait()
    for pipe in (proc.stdin, proc.stdout, proc.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _exit_reason(status: int | None) -> str:
    """How a child that sent no reply ended, as the predicate of a sentence."""
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"exited with status {status} without a reply"


def _as_item(rollout: Rollout) -> dict[str, Any]:
    """The JSON-able part of a rollout that is sent to the worker."""
    task = rollout.task
    first_sampled = rollout.mask.index(True) if True in rollout.mask else len(rollout.tokens)
    return {
        "text": rollout.text,
        "stop": rollout.stop,
        "length": rollout.length,
        "completion_ids": rollout.tokens[first_sampled:],
        "task": {"id": task.id, "prompt": task.prompt, "answer": task.answer, "meta": task.meta},
    }


def _as_outcome(result: dict[str, Any], name: str) -> Outcome:
    """The outcome in one of the worker's results; further components of the score are called `name/key`."""
    if "invalid" in result:
        return Invalid(f"{name}: {result['invalid']}")
    value = float(result["value"])
    parts = {f"{name}/{k}": float(v) for k, v in result.get("parts", {}).items()}
    return outcome(Score(value, {name: value} | parts), name)
