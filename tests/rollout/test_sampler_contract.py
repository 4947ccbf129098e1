"""Every sampler of the house keeps the contract; the scripted one says what it is told; a broken one is found out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

import families as fam
import sampler_contract
from drawn import same
from ladder.base import rng
from ladder.contract.rollouts import Completion, Request, Sampler, Sampling
from ladder.contract.training import Weights
from ladder.decoding.sampler import NativeSampler
from ladder.rollout.replica import Replica
from ladder.rollout.scripted import ScriptedSampler
from sampler_contract import PROMISES, Case, Groups

TOKENIZER = fam.tokenizer()
ENDS = (fam.EOS, *range(5, 11))
PROMPTS = [[20], [21, 22, 23, 24, 25, 26, 27, 28, 29, 30], [31, 32, 33], [34, 35, 36, 37, 38]]


def native(slots: int = 64, workers: int = 1) -> Callable[[], Sampler]:
    return lambda: NativeSampler(fam.cached("gemma3"), TOKENIZER, eos=ENDS, slots=slots, workers=workers)


def babble(prompt: str, i: int, key: int) -> list[int]:
    """Words by (key, sample), of one to twenty tokens, EOS last."""
    draws = rng.np_rng(key, prompt, i)
    return [*draws.integers(20, fam.VOCAB, int(draws.integers(0, 20))).tolist(), fam.EOS]


def alike(asked: Sequence[Request], mine: Groups, theirs: Groups) -> None:
    assert [len(g) for g in mine] == [len(g) for g in theirs]
    same(*([c for group in groups for c in group] for groups in (mine, theirs)), fam.cached("gemma3"), asked)


def replica(lag: int) -> Callable[[], Sampler]:
    return lambda: Replica(NativeSampler(fam.build("gemma3"), TOKENIZER, eos=ENDS, slots=3), lag)


def weights() -> Weights:
    """Those of every replica here, as a learner hands them over."""
    return fam.build("gemma3").named_parameters()


CASES = [
    Case("native", native(), PROMPTS, ENDS, TOKENIZER.decode, alike=alike),
    Case("native, one slot", native(slots=1), PROMPTS, ENDS, TOKENIZER.decode, alike=alike, scarce=True),
    Case("native, two slots", native(slots=2), PROMPTS, ENDS, TOKENIZER.decode, alike=alike),
    Case("native, two workers", native(workers=2), PROMPTS, ENDS, TOKENIZER.decode, alike=alike),
    Case("replica", replica(0), PROMPTS, ENDS, TOKENIZER.decode, weights=weights, alike=alike, owns=True),
    Case("scripted", lambda: ScriptedSampler(babble, TOKENIZER), PROMPTS, [fam.EOS], TOKENIZER.decode, scarce=True),
]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda p: p.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_contract(case: Case, promise: Callable[[Case], None]) -> None:
    promise(case)


# ------------------------------------------------------------ samplers that break it

Change = Callable[[list[list[Completion]]], list[list[Completion]]]


def each(change: Callable[[Completion], Completion]) -> Change:
    return lambda groups: [[change(c) for c in group] for group in groups]


BROKEN: dict[str, Change] = {
    "groups reversed": lambda groups: groups[::-1],
    "a sample missing": lambda groups: [g[1:] for g in groups],
    "a logp missing": each(lambda c: replace(c, logps=c.logps[1:])),
    "a logp above 0": each(lambda c: replace(c, logps=[0.5] * len(c.logps))),
    "a forced token with a logp": each(lambda c: replace(c, forced=[True] * len(c.forced))),
    "no reason": each(lambda c: replace(c, stop="stop")),
    "eos dropped": each(
        lambda c: c if c.stop != "eos" else replace(c, tokens=c.tokens[:-1], logps=c.logps[1:], forced=c.forced[1:])
    ),
    "eos in the text": each(lambda c: replace(c, text=TOKENIZER.decode(c.tokens))),
    "one sample copied": lambda groups: [[g[0]] * len(g) for g in groups],
}


class Broken(ScriptedSampler):
    """The scripted sampler with its answers changed."""

    change: Change

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        return self.change(super().generate(requests))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sampler_is_found_out(name: str) -> None:
    def make() -> Sampler:
        sampler = Broken(babble, TOKENIZER)
        sampler.change = BROKEN[name]
        return sampler

    with pytest.raises(AssertionError):
        sampler_contract.check(Case(name, make, PROMPTS, [fam.EOS], TOKENIZER.decode))


def test_draws_from_anything_but_the_key_are_found_out() -> None:
    state = iter(range(10_000))
    scripts = {
        "forgetful": lambda p, i, key: babble(p, i, next(state)),
        "deaf": lambda p, i, key: babble(p, i, 0),
        "monotonous": lambda p, i, key: babble(p, 0, key),
    }
    for name, script in scripts.items():
        case = replace(CASES[-1], name=name, make=lambda s=script: ScriptedSampler(s, TOKENIZER))
        with pytest.raises(AssertionError):
            sampler_contract.the_key_decides_the_draws(case)


# ------------------------------------------------------------ the scripted sampler


def test_a_script_by_prompt_is_taken_in_turn() -> None:
    sampler = ScriptedSampler({"w7 w8": ["w9 w10", [fam.DOUBLE, 12]], "w7": [[fam.EOS]]}, TOKENIZER, logp=-0.5)
    requests = [Request([7, 8], 3, Sampling(5)), Request([7], 1)]
    (a, b, c), (d,) = sampler.generate(requests)
    assert (a.tokens, a.stop, a.text) == ([9, 10, fam.EOS], "eos", "w9 w10")
    assert (b.tokens, b.stop, b.text) == ([fam.DOUBLE, 12], "length", "w5 w6 w12")
    assert c == a and (d.tokens, d.text) == ([fam.EOS], "")
    assert a.logps == [-0.5] * 3 and a.forced == [False] * 3
    assert sampler.asked == requests


def test_answers_are_cut_at_the_limit_and_completions_pass_untouched() -> None:
    whole = Completion([9, 4], [-0.25, 0.0], [False, True], "stop", "anything")
    sampler = ScriptedSampler({"w7": ["w9 w10 w11", whole]}, TOKENIZER)
    cut, same = sampler.generate([Request([7], 2, Sampling(2))])[0]
    assert (cut.tokens, cut.stop, cut.text) == ([9, 10], "length", "w9 w10")
    assert same == whole
    sampler.load(lambda: iter(()), 3)
    assert sampler.generate([Request([7], 2, Sampling(2))])[0][1] == replace(whole, version=3)


def test_an_unknown_prompt_is_named() -> None:
    with pytest.raises(KeyError, match="w9"):
        ScriptedSampler({"w7": ["w8"]}, TOKENIZER).generate([Request([9])])


def test_loads_are_noted() -> None:
    sampler = ScriptedSampler({}, TOKENIZER)
    sampler.load(lambda: pytest.fail("nobody needs the weights"), 4)
    assert (sampler.version, sampler.loads) == (4, 1)
