"""The types and protocols of rollouts: tasks, sampling requests, completions, rollouts, and the outcomes of rewards.

Holds dataclasses and protocols (Sampler, Env, Reward, Collect) and no computation. Imports the standard library only,
so that rewards, environments and tasks import no torch. The types of training (Sample, Pair, Loss, Signal) are in
`training.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from ladder.contract.training import Weights

Message = dict[str, Any]
"""One chat message: at least `role` and `content`."""


# ---------------------------------------------------------------- rollouts


@dataclass(slots=True)
class Task:
    """A prompt and the data needed to judge an answer to it. `prompt` is text or chat messages; `answer` is the
    reference answer, if there is one."""

    id: str
    prompt: str | list[Message]
    answer: Any = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. The defaults sample from the model's full distribution, as policy gradients assume.

    think_open, think_close: the delimiters of a thinking block. think_budget: the maximum number of tokens in an open
    thinking block before `think_close` is inserted (0: no limit). The policy does not choose inserted tokens, so they
    are not trained.
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
    """A request for n completions (samples) of one prompt (token ids). `key` seeds the sampling: equal keys give equal
    tokens under any scheduling.

    priority: waiting requests of a higher priority get slots first. keep: the sampler keeps the samples' keys and
    values after they have ended, until `Sampler.continue_from` or `Sampler.cancel`.
    """

    prompt: list[int]
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    key: int = 0
    priority: int = 0
    keep: bool = False


Stop = Literal["eos", "stop", "length"]


@dataclass(slots=True)
class Completion:
    """Sampled tokens (including the terminator, if one was sampled) and their log-probabilities.

    logps[i] is the log-probability of tokens[i] under the distribution that was sampled from (after temperature and
    truncation). forced[i] marks a token that was inserted, not sampled; its logp is 0. version: of the weights that all
    of the tokens were sampled with; the sampler sets it.
    """

    tokens: list[int]
    logps: list[float]
    forced: list[bool]
    stop: Stop
    text: str
    version: int = 0


@dataclass(slots=True)
class Finished:
    """A request that has ended: its number, which `Sampler.submit` returned, and its n completions."""

    number: int
    completions: list[Completion]


Progress = Callable[[int, int], None]
"""Called with (finished samples, submitted samples), counted since no request was in flight."""


@dataclass(slots=True)
class Rollout:
    """One answer to one task: a reward judges its text, the engine trains on its token ids.

    tokens: prompt and answer. mask[i]: True where the policy sampled tokens[i]. logps: aligned with tokens (0.0 where
    mask is False). group: index that the answers to one prompt share. version: version of the policy that sampled it.
    """

    task: Task
    tokens: list[int]
    mask: list[bool]
    logps: list[float]
    text: str  # the answer without its terminator
    stop: Stop
    group: int = 0
    version: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum(self.mask)


class Sampler(Protocol):
    """Generates completions, step by step. An implementation must pass `tests/sampler_contract.py`.

    Requests may be submitted while others are decoded: tokens depend on the request's key, the sample's index and the
    position alone, so scheduling changes nothing but time. One version of the weights samples all of a completion.
    """

    progress: Progress | None

    @property
    def version(self) -> int:
        """The version of the weights that are sampled from now."""
        ...

    @property
    def busy(self) -> bool:
        """Whether requests are in flight."""
        ...

    def submit(self, request: Request) -> int:
        """Queues a request and returns its number. Raises UserError for a request that can never be served."""
        ...

    def step(self) -> list[Finished]:
        """Runs a step (a prefill, or one token for every running sequence); returns the requests that it finished."""
        ...

    def cancel(self, number: int) -> None:
        """Ends a request without completions and frees what was kept of it. It may have ended already."""
        ...

    def continue_from(
        self, number: int, sample: int, tokens: Sequence[int], *, sampling: Sampling | None = None, keep: bool = True
    ) -> int:
        """Submits the next turn of a kept sample: one sample of [prompt, completion, *tokens], whose known keys and
        values are not computed again. Returns the number of the new request.

        tokens: what an environment wrote after the completion (at least one). sampling: None for the request's own.
        The random stream continues where the sample's last turn ended; the priority is the request's. Raises UserError
        for a sample that is not kept.
        """
        ...

    def load(self, weights: Callable[[], Weights], version: int) -> None:
        """Replaces the policy's weights; requests submitted from now on are sampled with this version. While requests
        are in flight, a sampler with its own copy of the weights waits until they have ended; any other raises
        UserError."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Submits requests and steps until they have ended: one list of n completions per request, in their order.
        Raises ValueError if other requests are in flight."""
        ...


class Env(Protocol):
    """An environment that the policy talks to in chat messages."""

    def reset(self, task: Task) -> list[Message]:
        """Starts an episode; returns the messages that open it."""
        ...

    def step(self, message: Message) -> tuple[list[Message], bool]:
        """Takes the policy's message; returns the environment's messages and whether the episode is over."""
        ...


# ---------------------------------------------------------------- rewards


@dataclass(frozen=True, slots=True)
class Score:
    """The reward of a whole answer. `parts` holds its named components."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Invalid:
    """The answer cannot be judged (the reward returned NaN or None, or the reference answer does not parse)."""

    why: str


@dataclass(frozen=True, slots=True)
class InfraError:
    """The reward itself failed (an exception, a timeout, a crash). This says nothing about the answer, so it never
    counts as a reward of 0."""

    why: str


Outcome = Score | Invalid | InfraError


class Reward(Protocol):
    """Judges the group of answers to one prompt: one outcome per answer, in order."""

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]: ...


Groups = list[list[Rollout]]
"""The rollouts of one step, grouped by prompt."""
Judged = list[list[Outcome]]
"""The outcomes of `Groups`, one per rollout in the same order."""


@runtime_checkable
class JudgesGroups(Protocol):
    """A reward that judges several groups in one call: a model in one forward pass, a slow judge with several calls at
    a time. Calling it with one group gives the same outcomes."""

    def judge_groups(self, groups: Groups) -> Judged:
        """One outcome per rollout, group by group."""
        ...


class Collect(Protocol):
    """Samples answers to tasks: one group per task, in order."""

    def __call__(self, tasks: Sequence[Task], *, step: int, version: int) -> Groups: ...
