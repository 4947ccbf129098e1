"""What every sampler (`ladder.contract.rollouts.Sampler`) must do. A backend is one when `check` and its parts pass for
it.

`Case` says how to make the sampler and what it may be asked; the functions are the contract, one promise each, so
that a test can be parametrised over PROMISES.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ladder.contract.rollouts import Completion, Request, Sampler, Sampling
from ladder.contract.training import Weights
from stepper_contract import STEPS

Groups = list[list[Completion]]


def identical(asked: Sequence[Request], mine: Groups, theirs: Groups) -> None:
    """Token for token."""
    assert _tokens(mine) == _tokens(theirs)


@dataclass(frozen=True)
class Case:
    """make: a fresh sampler. prompts: several, of different lengths, whose answers vary. eos: ids that end one.
    weights: those that it draws with already, for a sampler with a copy of its own. alike: raises where two answers to
    the same requests, drawn in different company, are not the same: for a model they are so to rounding. scarce: one
    request fills the slots. owns: the sampler has its own copy of the weights, so new ones can wait."""

    name: str
    make: Callable[[], Sampler]
    prompts: Sequence[list[int]]
    eos: Sequence[int]
    decode: Callable[[list[int]], str]
    max_tokens: int = 12
    weights: Callable[[], Weights] = lambda: iter(())
    alike: Callable[[Sequence[Request], Groups, Groups], None] = identical
    scarce: bool = False
    owns: bool = False

    def requests(self, key: int = 0, n: int = 3) -> list[Request]:
        """A request for every prompt; they ask for different numbers of samples."""
        sampling = Sampling(max_tokens=self.max_tokens)
        return [Request(list(p), n + i % 2, sampling, key + i) for i, p in enumerate(self.prompts)]


def groups_come_in_order_and_whole(case: Case) -> None:
    """One group per request, n completions each; alone, each request gets what it got in company."""
    sampler, asked = case.make(), case.requests()
    drawn = sampler.generate(asked)
    assert [len(g) for g in drawn] == [r.n for r in asked]
    case.alike(asked, drawn, [group for request in asked for group in sampler.generate([request])])
    assert sampler.generate([]) == []


def completions_are_well_formed(case: Case) -> None:
    for c in _flat(case.make().generate(case.requests())):
        assert len(c.tokens) == len(c.logps) == len(c.forced)
        assert 1 <= len(c.tokens) <= case.max_tokens
        assert all(type(t) is int for t in c.tokens), "token ids are plain ints"
        assert all(type(f) is bool for f in c.forced), "forced marks are plain bools"
        for logp, forced in zip(c.logps, c.forced, strict=True):
            assert type(logp) is float and math.isfinite(logp) and logp <= 1e-6
            assert not forced or logp == 0.0


def answers_end_for_a_reason(case: Case) -> None:
    """EOS is kept as the last token, stands nowhere else, and is not in the text."""
    drawn = _flat(case.make().generate(case.requests(n=8)))
    assert len({c.stop for c in drawn}) > 1, "the case should show answers that end and answers that are cut off"
    for c in drawn:
        assert c.stop in ("eos", "length"), "no stop strings were asked for"
        assert (c.tokens[-1] in case.eos) == (c.stop == "eos")
        assert not set(c.tokens[:-1]) & set(case.eos)
        assert c.stop == "eos" or len(c.tokens) == case.max_tokens
        assert c.text == case.decode(c.tokens[:-1] if c.stop == "eos" else c.tokens)


def the_key_decides_the_draws(case: Case) -> None:
    """Equal keys give equal draws, in a fresh sampler, too; other keys others; so do the samples of one request."""
    first = case.make().generate(case.requests(key=5))
    again = case.make().generate(case.requests(key=5))
    assert _tokens(first) == _tokens(again)
    assert _tokens(first) != _tokens(case.make().generate(case.requests(key=500)))
    assert any(len({tuple(c.tokens) for c in group}) > 1 for group in first)


def the_company_decides_nothing(case: Case) -> None:
    """The same requests in another order, and each asked for one sample more, give the same draws."""
    asked = case.requests()
    more = [replace(r, n=r.n + 1) for r in reversed(asked)]
    others = [g[:-1] for g in reversed(case.make().generate(more))]
    case.alike(asked, case.make().generate(asked), others)


def requests_are_left_as_they_were(case: Case) -> None:
    asked, copy = case.requests(), case.requests()
    case.make().generate(asked)
    assert asked == copy


def weights_can_be_loaded(case: Case) -> None:
    """`load` takes a callable and a version at any time, and sampling goes on."""
    sampler = case.make()
    sampler.load(case.weights, 1)
    sampler.generate(case.requests())
    sampler.load(case.weights, 2)
    assert _tokens(sampler.generate(case.requests())) == _tokens(case.make().generate(case.requests()))


PROMISES: tuple[Callable[[Case], None], ...] = (
    groups_come_in_order_and_whole,
    completions_are_well_formed,
    answers_end_for_a_reason,
    the_key_decides_the_draws,
    the_company_decides_nothing,
    requests_are_left_as_they_were,
    weights_can_be_loaded,
    *STEPS,
)


def check(case: Case) -> None:
    """The whole contract."""
    for promise in PROMISES:
        promise(case)


def _flat(groups: Groups) -> list[Completion]:
    return [c for group in groups for c in group]


def _tokens(groups: Groups) -> list[list[list[int]]]:
    return [[c.tokens for c in group] for group in groups]
