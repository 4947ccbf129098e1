"""A replica takes new weights between steps only, when no sequence is in flight, whoever loads them and when."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

import families as fam
from drawn import gap, plain
from ladder.contract.rollouts import Completion, Request, Sampling
from ladder.decoding.sampler import NativeSampler
from ladder.rollout.replica import Replica
from stepper_contract import finish

TOKENIZER = fam.tokenizer()
PROMPT = [20, 21, 22]
ASKED = [Request(PROMPT, 3, Sampling(12), i) for i in range(4)]


def model(scale: float = 1.0) -> Any:
    """Of one shape; another scale is another policy. Everything can be trained."""
    made = fam.build("qwen3")
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(scale)
    return made


def replica(lag: int = 0, workers: int = 1) -> Replica:
    own = model().requires_grad_(False)
    return Replica(NativeSampler(own, TOKENIZER, eos=[fam.EOS], slots=4, workers=workers), lag)


def sampled_by(policy: Any, completions: Sequence[Completion]) -> bool:
    """Whether the log-probabilities are a model's own."""
    whole = plain(policy, [PROMPT + c.tokens for c in completions])
    apart = []
    for logits_TV, c in zip(whole, completions, strict=True):
        logps = logits_TV[len(PROMPT) - 1 : -1].log_softmax(-1)
        apart.append(gap(c.logps, logps.gather(1, torch.tensor(c.tokens)[:, None])[:, 0]))
    return max(apart) < 1e-4


def flat(groups: Sequence[Sequence[Completion]]) -> list[Completion]:
    return [c for group in groups for c in group]


@pytest.mark.parametrize("workers", [1, 2])
def test_weights_that_are_loaded_amid_a_call_wait_for_its_end(workers: int) -> None:
    new, sampler = model(1.3), replica(workers=workers)
    told: list[int] = []

    def load(done: int, total: int) -> None:
        told.append(done)
        if len(told) == 3:
            thread = Thread(target=sampler.load, args=(new.named_parameters, 1))
            thread.start()
            thread.join(0.05)  # one worker's steps hold the lock that it needs

    sampler.progress = load
    first = flat(sampler.generate(ASKED))
    assert len(told) > 3 and {c.version for c in first} == {0} and sampled_by(model(), first)
    sampler.progress = None
    second = flat(sampler.generate(ASKED))
    assert {c.version for c in second} == {1} and sampled_by(new, second)
    assert not sampled_by(model(), second)


def test_requests_that_come_after_new_weights_wait_for_them() -> None:
    """The newest of two that come while sequences run; the request can be cancelled while it waits."""
    sampler = replica()
    running = sampler.submit(ASKED[0])
    sampler.step()
    for version, scale in ((1, 1.3), (2, 1.6)):
        sampler.load(model(scale).named_parameters, version)
    later, cancelled = sampler.submit(ASKED[1]), sampler.submit(ASKED[2])
    assert sampler.version == 0
    sampler.cancel(cancelled)
    done = finish(sampler)
    assert set(done) == {running, later} and sampler.version == 2
    assert sampled_by(model(), done[running]) and sampled_by(model(1.6), done[later])


def test_the_copy_is_made_when_weights_are_loaded() -> None:
    """Not when they are taken: the learner goes on meanwhile."""
    sampler, learner = replica(), model(1.3)
    sampler.submit(ASKED[0])
    sampler.step()
    sampler.load(learner.named_parameters, 1)
    before = copy.deepcopy(learner)
    with torch.no_grad():
        for p in learner.parameters():
            p.mul_(1.3)
    later = sampler.submit(ASKED[1])
    assert sampled_by(before, finish(sampler)[later])


def test_a_version_is_not_taken_twice(tmp_path: Path) -> None:
    """As a resumed run hands over: the weights lie in the replica's own file."""
    sampler = replica(lag=2)
    for version, scale in enumerate((1.1, 1.2, 1.3), 1):
        sampler.load(model(scale).named_parameters, version)
    sampler.save(tmp_path)
    again = replica(lag=2)
    again.restore(tmp_path)
    again.load(lambda: pytest.fail("these weights are there already"), 3)
    assert again.version == sampler.version == 1 and [v for v, _ in again.waiting] == [2, 3]
    again.load(model(1.4).named_parameters, 4)
    assert again.version == 2 and sampled_by(model(1.2), flat(again.generate(ASKED)))


def test_a_call_that_fails_as_it_ends_leaves_nothing() -> None:
    sampler = replica()

    def fail(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    sampler.progress = fail
    with pytest.raises(KeyboardInterrupt):
        sampler.generate(ASKED)
    sampler.progress = None
    assert not sampler.busy and sampler.step() == []
    assert len(flat(sampler.generate(ASKED))) == 12
