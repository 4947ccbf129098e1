"""The contract every part of the house is written against.

A technique is whoever fills the columns of a `Sample`; the engine reads tokens, masks and columns and never
knows who filled them. This file holds those types and the protocols (Loss, Signal, Sampler, Env, Reward) and
nothing that computes.

Shapes in names and comments: T tokens of one sequence, N trained positions of a micro-batch, S sequences of a
micro-batch, P pairs. All `Sample` tensors are 1-D, on the CPU, of one length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from ladder.contract.training import Weights

Message = dict[str, Any]
"""One chat turn: at least `role` and `content`."""


# ---------------------------------------------------------------- rollouts


@dataclass(slots=True)
class Task:
    """A prompt with what is needed to judge an answer to it. `prompt` is text or chat messages."""

    id: str
    prompt: str | list[Message]
    answer: Any = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw. The defaults draw from the model's whole distribution, as policy gradients assume.

    think_budget: most tokens inside an open thinking block before `think_close` is forced (0: no bound). Forced
    tokens are not the policy's choice and are not trained.
    """

    max_tokens: int = 256
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    think_open: str = "<thinking>"
    think_close: str = "</thinking>"
    think_budget: int = 0


@dataclass(slots=True)
class Request:
    """n completions of one prompt. `key` seeds the draws: equal keys give equal tokens under any scheduling."""

    prompt: list[int]
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    key: int = 0


Stop = Literal["eos", "stop", "length"]


@dataclass(slots=True)
class Completion:
    """Sampled tokens (with the terminator, when one was drawn) and the log-probabilities they were drawn with.

    logps[i] is the log-probability of tokens[i] under the distribution actually sampled (after temperature and
    truncation). forced[i] marks a token that was inserted, not drawn; its logp is 0.
    """

    tokens: list[int]
    logps: list[float]
    forced: list[bool]
    stop: Stop
    text: str


@dataclass(slots=True)
class Rollout:
    """One answer to one task: what a reward judges and what the engine trains on, token for token.

    tokens holds prompt and answer; mask[i] is True where the policy drew tokens[i]; logps is aligned with tokens
    (0.0 where mask is False). version: of the policy that drew it. group: equal for the answers to one prompt.
    """

    task: Task
    tokens: list[int]
    mask: list[bool]
    logps: list[float]
    text: str  # the answer, without its terminator
    stop: Stop
    group: int = 0
    version: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens the policy drew."""
        return sum(self.mask)


class Sampler(Protocol):
    """Draws completions. Anything that passes `tests/sampler_contract.py` is one."""

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """One list of n completions per request, in the order asked."""
        ...

    def load(self, weights: Callable[[], Weights], version: int) -> None: ...


class Env(Protocol):
    """A conversation partner: messages in, messages out."""

    def reset(self, task: Task) -> list[Message]: ...
    def step(self, message: Message) -> tuple[list[Message], bool]: ...


# ---------------------------------------------------------------- rewards


@dataclass(frozen=True, slots=True)
class Score:
    """The world's word on a whole answer. `parts` names its components."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Invalid:
    """The answer cannot be judged (a reward returned NaN or None, a gold answer does not parse)."""

    why: str


@dataclass(frozen=True, slots=True)
class InfraError:
    """The judge failed (raised, hung, died). Says nothing about the answer, so it never counts as 0."""

    why: str


Outcome = Score | Invalid | InfraError


class Reward(Protocol):
    """Judges the group of answers to one prompt: one outcome each, in order."""

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]: ...


Groups = list[list[Rollout]]
Judged = list[list[Outcome]]


@runtime_checkable
class JudgesGroups(Protocol):
    """A reward that judges several groups in one call: a model in one forward pass, a slow judge with several calls at
    a time. Calling it with one group gives the same outcomes."""

    def judge_groups(self, groups: Groups) -> Judged:
        """One outcome per rollout, group by group."""
        ...


class Collect(Protocol):
    """Samples the answers to some tasks: one group per task."""

    def __call__(self, tasks: Sequence[Task], *, step: int, version: int) -> Groups: ...
