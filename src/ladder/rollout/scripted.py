"""A sampler with scripted completions, for tests and rehearsals of the code that uses samplers.

A scripted answer is text (tokenised, ended by EOS), token ids (taken unchanged: they end by "eos" if the last of them
is EOS, else by "length"), or a whole `Completion`. The script is a mapping from the prompt's text, or a function. A
step finishes one request; in a later turn the prompt is the whole sequence before the completion.

Left out: stop strings, thinking budgets and temperatures; a script gives a `Completion` to show them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from ladder.base.errors import UserError
from ladder.contract.rollouts import Completion, Finished, Progress, Request, Sampling
from ladder.contract.training import Weights
from ladder.decoding.generate import generate
from ladder.decoding.kept import KeptSample, KeptSamples

Answer = str | Sequence[int] | Completion
Script = Mapping[str, Sequence[Answer]] | Callable[[str, int, int], Answer]
"""By prompt: its samples' answers, taken in turn. Or a function of (prompt, sample's index, request's key)."""


@dataclass(slots=True)
class ScriptedSampler:
    """See the file's docstring. logp: the log-probability of tokens for which the script gives none.

    asked: every request so far; a later turn is a request with the whole sequence as its prompt. version: of the last
    `load`. loads: number of calls of `load`.
    """

    script: Script
    tokenizer: Any
    logp: float = -1.0
    asked: list[Request] = field(default_factory=list)
    version: int = 0
    loads: int = 0
    progress: Progress | None = None
    _queue: list[_Asked] = field(default_factory=list)
    _kept: KeptSamples = field(default_factory=KeptSamples)
    _numbers: Any = field(default_factory=count)
    _counts: tuple[int, int] = (0, 0)

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def load(self, weights: Callable[[], Weights], version: int) -> None:
        """Notes the version; a script has no weights."""
        if self.busy:
            raise UserError("new weights were loaded while requests are in flight", hint="step until they finished")
        self.version, self.loads = version, self.loads + 1

    def submit(self, request: Request) -> int:
        """See `contract.rollouts.Sampler`."""
        return self._ask(request, None)

    def continue_from(
        self, number: int, sample: int, tokens: Sequence[int], *, sampling: Sampling | None = None, keep: bool = True
    ) -> int:
        """See `contract.rollouts.Sampler`."""
        kept = self._kept.find(number, sample, tokens)
        self._kept.remove(number, sample)
        prompt, sampling = [*kept.sequence, *tokens], sampling or kept.sampling
        return self._ask(Request(prompt, 1, sampling, kept.key, kept.priority, keep), kept)

    def _ask(self, request: Request, before: KeptSample | None) -> int:
        if not request.prompt or request.n < 1 or request.sampling.max_tokens < 1:
            raise UserError(f"asked for {request.n} samples to a prompt of {len(request.prompt)} tokens")
        self.asked.append(request)
        asked = _Asked(next(self._numbers), request, before)
        self._queue.append(asked)
        done, total = self._counts
        self._counts = done, total + request.n
        return asked.number

    def step(self) -> list[Finished]:
        """Finishes the request with the highest priority. Raises KeyError for a prompt that the script lacks."""
        if not self._queue:
            return []
        asked = max(self._queue, key=lambda one: one.request.priority)
        request, first = asked.request, asked.before.sample if asked.before else 0
        completions = [self._one(request, first + i) for i in range(request.n)]
        self._queue.remove(asked)
        for i, completion in enumerate(completions if request.keep else []):
            self._kept.put(asked.number, i, self._keep(asked, i, completion))
        done, total = self._counts
        done += request.n
        self._counts = (done, total) if self._queue else (0, 0)
        if self.progress is not None:
            self.progress(done, total)
        return [Finished(asked.number, completions)]

    def cancel(self, number: int) -> None:
        """See `contract.rollouts.Sampler`."""
        self._kept.drop(number)
        done, total = self._counts
        total -= sum(asked.request.n for asked in self._queue if asked.number == number)
        self._queue = [asked for asked in self._queue if asked.number != number]
        self._counts = (done, total) if self._queue else (0, 0)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """See `contract.rollouts.Sampler`. Raises KeyError for a prompt that the script lacks."""
        return generate(self, requests)

    def _keep(self, asked: _Asked, i: int, completion: Completion) -> KeptSample:
        kept = KeptSample.of(asked.request, i, completion)
        return kept if asked.before is None else replace(kept, sample=asked.before.sample)

    def _one(self, request: Request, i: int) -> Completion:
        prompt = self.tokenizer.decode(request.prompt)
        if callable(self.script):
            answer = self.script(prompt, i, request.key)
        elif prompt in self.script:
            answer = self.script[prompt][i % len(self.script[prompt])]
        else:
            raise KeyError(f"the script has no answer to {prompt!r}, only to {list(self.script)}")
        if isinstance(answer, Completion):
            return replace(answer, version=self.version)
        return self._completion(answer, request.sampling.max_tokens)

    def _completion(self, answer: str | Sequence[int], limit: int) -> Completion:
        eos = self.tokenizer.eos_token_id
        if isinstance(answer, str):
            ids = [*self.tokenizer.encode(answer, add_special_tokens=False), eos]
        else:
            ids = list(answer)
        assert ids, "an answer has at least one token"
        ids = ids[:limit]
        ended = ids[-1] == eos
        text = self.tokenizer.decode(ids[:-1] if ended else ids)
        stop = "eos" if ended else "length"
        return Completion(ids, [self.logp] * len(ids), [False] * len(ids), stop, text, self.version)


@dataclass(slots=True, eq=False)
class _Asked:
    """A request in flight. before: the kept sample that it continues."""

    number: int
    request: Request
    before: KeptSample | None
