"""A sampler that answers from a script: for tests and rehearsals of everything that stands above a sampler.

An answer is text (tokenised, ended by EOS), token ids (taken as they are: they end by "eos" if the last of them is
EOS, else by "length"), or a whole `Completion`. Scripts are looked up by the prompt's text, or called.

Left out: stop strings, thinking budgets and temperatures; an answer that shall show them is given as a `Completion`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ladder.contract.rollouts import Completion, Request
from ladder.contract.training import Weights

Answer = str | Sequence[int] | Completion
Script = Mapping[str, Sequence[Answer]] | Callable[[str, int, int], Answer]
"""By prompt: its samples' answers, taken in turn. Or a function of (prompt, sample's index, request's key)."""


@dataclass(slots=True)
class ScriptedSampler:
    """See the file's docstring. logp: of every token that the script gives without one.

    asked: every request so far. version, loads: of the weights last loaded, and how often that happened.
    """

    script: Script
    tokenizer: Any
    logp: float = -1.0
    asked: list[Request] = field(default_factory=list)
    version: int = 0
    loads: int = 0

    def load(self, weights: Callable[[], Weights], version: int) -> None:
        """Notes the version; a script has no weights, so none are asked for."""
        self.version, self.loads = version, self.loads + 1

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """See `types.Sampler`. Raises KeyError for a prompt that the script does not know."""
        self.asked.extend(requests)
        return [[self._one(r, i) for i in range(r.n)] for r in requests]

    def _one(self, request: Request, i: int) -> Completion:
        prompt = self.tokenizer.decode(request.prompt)
        if callable(self.script):
            answer = self.script(prompt, i, request.key)
        elif prompt in self.script:
            answer = self.script[prompt][i % len(self.script[prompt])]
        else:
            raise KeyError(f"the script has no answer to {prompt!r}, only to {list(self.script)}")
        return answer if isinstance(answer, Completion) else self._completion(answer, request.sampling.max_tokens)

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
        return Completion(ids, [self.logp] * len(ids), [False] * len(ids), "eos" if ended else "length", text)
