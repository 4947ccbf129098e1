"""The native sampler step by step: turns continue kept keys and values in every back end, the room grows, slots are
freed, and lines of tokens are used again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import families as fam
import tiles
from drawn import TOKENIZER, gap, same
from ladder.base.errors import UserError
from ladder.contract.rollouts import Completion, Request, Sampling
from ladder.decoding import backend, llama_cuda
from ladder.decoding.draw import stream, uniforms
from ladder.decoding.llama import Decoder
from ladder.decoding.llama_cpu import Compiled
from ladder.decoding.llama_cuda import Graphed
from ladder.decoding.modules import Modules
from ladder.decoding.sampler import NativeSampler
from ladder.decoding.scheduler import Job, Scheduler
from ladder.kernels import decode
from stepper_contract import Done, finish

ENDS = (fam.EOS, 11, 12)
WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 112}
TOLERANCE = 1e-4

needs_c = pytest.mark.skipif(decode.kernels() is None, reason="no C compiler here")
BACKENDS = [
    pytest.param(name, {"packed": False}, Modules, id=f"modules-{name}") for name in fam.NAMES
] + [
    pytest.param("qwen3", {}, Decoder, id="operators"),
    pytest.param("wide", {}, Compiled, id="C", marks=needs_c),
    pytest.param("llama", {"captured": True}, Graphed, id="captured"),
]  # fmt: skip


def native(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **more: Any) -> NativeSampler:
    """A sampler of a family's model; captured: as on CUDA, with stand-ins for its kernels."""
    model = fam.build("llama", **WIDE).requires_grad_(False) if name == "wide" else fam.cached(name)
    if options.get("captured"):
        monkeypatch.setattr(llama_cuda, "fits", lambda device: True)
        tiles.in_place(monkeypatch)
    plain = {k: v for k, v in options.items() if k != "captured"}
    return NativeSampler(model, TOKENIZER, eos=ENDS, **plain, **more)


def random_tokens(n: int, seed: int) -> list[int]:
    return torch.randint(20, fam.VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def check_logps(sampler: NativeSampler, prompt: list[int], completion: Completion) -> None:
    """Against transformers' own forward of the whole sequence."""
    config = sampler.model.config  # pyright: ignore[reportAttributeAccessIssue]
    before, config._attn_implementation = config._attn_implementation, "eager"
    try:
        whole = fam.alone(sampler.model, [*prompt, *completion.tokens])
    finally:
        config._attn_implementation = before
    assert gap(completion.logps, whole[len(prompt) :]) < TOLERANCE


# ------------------------------------------------------------ turns


@pytest.mark.parametrize(("name", "options", "kind"), BACKENDS)
def test_a_turn_has_the_logps_of_the_whole_sequence(
    name: str, options: dict[str, Any], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of two prompts, three turns, with long and short texts between; only the new tokens are read."""
    sampler = native(name, options, monkeypatch)
    read: list[int] = []
    plain = kind.read
    monkeypatch.setattr(kind, "read", lambda self, p, first: read.append(len(p.tokens)) or plain(self, p, first))
    prompts = random_tokens(19, 1), random_tokens(4, 2)
    numbers = [sampler.submit(Request(p, 2, Sampling(9), i, keep=True)) for i, p in enumerate(prompts)]
    done = finish(sampler)
    turns = [(number, j, [*prompts[i], *done[number][j].tokens]) for i, number in enumerate(numbers) for j in (0, 1)]
    for length in (1, 23, 3):
        read.clear()
        asked: list[tuple[int, list[int]]] = []
        for i, (number, j, sequence) in enumerate(turns):
            written = random_tokens(length, 10 * length + i)
            asked.append((sampler.continue_from(number, j, written), [*sequence, *written]))
        done = finish(sampler)
        assert sum(read) == len(turns) * (length + 1), "the last drawn token's keys are not known yet"
        for number, prompt in asked:
            check_logps(sampler, prompt, done[number][0])
        turns = [(number, 0, [*prompt, *done[number][0].tokens]) for number, prompt in asked]


def test_turns_are_drawn_by_the_sample_s_own_stream_whatever_is_kept() -> None:
    """The same tokens where keys and values were let go of, because the weights were loaded anew; and no number of the
    stream is used twice."""
    answers: list[list[int]] = []
    for forget in (False, True):
        sampler = native("qwen3", {}, pytest.MonkeyPatch())
        number = sampler.submit(Request([20, 21, 22], 2, Sampling(8), 5, keep=True))
        first = finish(sampler)[number]
        if forget:
            sampler.load(lambda: iter(()), 1)
        turns = [sampler.continue_from(number, j, [30, 31], sampling=Sampling(12)) for j in (0, 1)]
        done = finish(sampler)
        answers += [done[turn][0].tokens for turn in turns]
        assert {done[turn][0].version for turn in turns} == {int(forget)}
        assert len(first[0].tokens) > 1
    assert answers[:2] == answers[2:]
    numbers = [stream(5, 1, drawn) for drawn in range(40)]
    behind = uniforms(np.array(numbers, np.uint64), np.full(40, 3))
    assert torch.equal(behind, uniforms(np.full(40, numbers[0], np.uint64), 3 + np.arange(40)))
    assert len(set(numbers)) == 40 and numbers[0] == stream(5, 1)


def test_a_turn_after_new_weights_is_of_the_new_model() -> None:
    """Also of one that waited for them in a replica's queue: keys and values of the old model are not read."""
    model = fam.build("qwen3").requires_grad_(False)
    sampler = NativeSampler(model, TOKENIZER, eos=ENDS)
    numbers = [sampler.submit(Request([20, 21, 22], 1, Sampling(6), i, keep=True)) for i in range(2)]
    sequences = {number: [20, 21, 22, *answers[0].tokens] for number, answers in finish(sampler).items()}

    def change(version: int) -> None:
        for p in model.parameters():
            p.mul_(1.2)
        sampler.reweighted(version)

    running = sampler.submit(Request([25], 1, Sampling(4)))
    sampler.step()
    sampler.when_idle(lambda: change(1))
    waiting = sampler.continue_from(numbers[0], 0, [30, 31])
    done = finish(sampler)
    assert (done[running][0].version, done[waiting][0].version) == (0, 1)
    check_logps(sampler, [*sequences[numbers[0]], 30, 31], done[waiting][0])
    change(2)
    later = sampler.continue_from(numbers[1], 0, [30])
    (completion,) = finish(sampler)[later]
    assert completion.version == 2
    check_logps(sampler, [*sequences[numbers[1]], 30], completion)


def test_a_turn_counts_as_one_sequence_for_thinking_and_context() -> None:
    edges = {20: fam.OPEN, fam.OPEN: 21, 21: 22, 22: 23, 23: 22, 30: 23, fam.CLOSE: 40}
    sampler = NativeSampler(fam.chain(edges), TOKENIZER, eos=[fam.EOS], context=24)
    number = sampler.submit(Request([31, 20], 1, Sampling(4), keep=True))
    assert finish(sampler)[number][0].tokens == [fam.OPEN, 21, 22, 23]
    with pytest.raises(UserError, match="leaves no room in a context of 24"):
        sampler.continue_from(number, 0, [30] * 18)
    turn = sampler.continue_from(number, 0, [30], sampling=Sampling(9, think_budget=3))
    (done,) = finish(sampler)[turn]
    assert done.tokens == [23, 22, 23, fam.CLOSE, 40, fam.EOS] and done.forced.index(True) == 3


def test_cancelled_and_continued_samples_are_let_go_of() -> None:
    sampler = native("qwen3", {}, pytest.MonkeyPatch())
    numbers = [sampler.submit(Request([20 + i], 2, Sampling(3), keep=True)) for i in range(3)]
    finish(sampler)
    kept = sampler.stepper.kept.samples
    assert set(kept) == set(numbers) and sampler.stepper.state is None
    sampler.cancel(numbers[0])
    turn = sampler.continue_from(numbers[1], 0, [9], keep=False)
    finish(sampler)
    assert set(kept) == set(numbers[1:]) and set(kept[numbers[1]]) == {1} and turn not in kept


# ------------------------------------------------------------ room


LATER = [(30, 1, 60), (2, 5, 4), (100, 2, 30), (7, 3, 90)]
"""Prompt tokens, samples and limits of requests that come one after the other, each while others are decoded."""


@pytest.mark.parametrize(("name", "options", "kind"), [p for p in BACKENDS if "packed" not in p.values[1]])
@pytest.mark.parametrize("more", [{}, {"slots": 3}, {"cache_tokens": 240}], ids=str)
def test_the_room_grows_with_what_comes(
    name: str, options: dict[str, Any], kind: type, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More samples and longer ones than those that the first step made room for."""
    check_growth(native(name, options, monkeypatch, **more), kind, monkeypatch)


@pytest.mark.parametrize("name", ["gemma2", "llama"])
def test_the_modules_room_grows_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_growth(native(name, {"packed": False}, monkeypatch), Modules, monkeypatch)


def check_growth(sampler: NativeSampler, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[tuple[int, int]] = []
    fill = kind.fill
    steps: list[int] = []
    step = kind.step
    monkeypatch.setattr(kind, "step", lambda self, tokens, at: steps.append(len(tokens)) or step(self, tokens, at))
    monkeypatch.setattr(kind, "fill", lambda self, *a: rooms.append((self.slots, self.length)) or fill(self, *a))
    asked = [Request(random_tokens(n, i), m, Sampling(limit), i) for i, (n, m, limit) in enumerate(LATER)]
    first = Request([20, 21], 1, Sampling(70), 9)
    numbers, done = [sampler.submit(first)], Done()
    for request in asked:
        for _ in range(3):
            done |= {finished.number: finished.completions for finished in sampler.step()}
        numbers.append(sampler.submit(request))
    finish(sampler, done)
    most, tokens = sampler.slots, sampler.cache_tokens
    longest = max(len(r.prompt) + r.sampling.max_tokens for r in asked)
    assert max(steps) <= min(most, max(1, tokens // 72)) and rooms[-1][1] >= longest
    assert rooms[0][0] == 1 and max(slots for slots, _ in rooms) > 1
    for request, number in zip([first, *asked], numbers, strict=True):
        for completion in done[number]:
            check_logps(sampler, request.prompt, completion)


def test_a_longer_request_waits_where_slots_times_length_is_bounded() -> None:
    """Four sequences fill the room; one twice as long waits until two slots are enough, and is not forgotten."""
    endless = fam.chain({20: 21, 21: 20, 22: 22})
    sampler = NativeSampler(endless, TOKENIZER, eos=[fam.EOS], cache_tokens=160)
    short = [sampler.submit(Request([20, 21], 1, Sampling(limit), i)) for i, limit in enumerate((38, 30, 20, 10))]
    sampler.step()
    long = sampler.submit(Request([22] * 20, 1, Sampling(60), 7, priority=3))
    order: list[int] = []
    most: dict[bool, int] = {False: 0, True: 0}
    while sampler.busy:
        order += [finished.number for finished in sampler.step()]
        running = any(row.job.number == long for row in sampler.stepper.scheduler.rows.values())
        most[running] = max(most[running], sampler.stepper.scheduler.active)
    assert order == [short[3], short[2], short[1], short[0], long] and most == {False: 4, True: 2}


def test_weights_are_laid_out_once_while_requests_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    laid: list[int] = []
    plain = backend.Llama.of
    monkeypatch.setattr(backend.Llama, "of", lambda *a, **how: laid.append(1) or plain(*a, **how))
    sampler = NativeSampler(fam.cached("qwen3"), TOKENIZER, eos=[fam.PAD])
    for i in range(6):
        sampler.submit(Request([20 + i] * (i + 1), 4, Sampling(9 + i), i))
        sampler.step()
    finish(sampler)
    assert len(laid) == 1
    sampler.generate([Request([20], 4, Sampling(3))])
    assert len(laid) == 2, "weights may have changed since"


@needs_c
@pytest.mark.parametrize(("rows", "limit", "compiled"), [(1, 7, False), (1, 8, True), (3, 2, False), (4, 1, True)])
def test_few_tokens_are_not_worth_packing_weights(rows: int, limit: int, compiled: bool) -> None:
    sampler = NativeSampler(fam.build("llama", **WIDE), TOKENIZER, eos=ENDS, frozen=True)
    sampler.generate([Request([20, 21], rows, Sampling(limit))])
    laid = sampler.backend.laid
    assert laid is not None and (laid.compiled is not None) == laid.packed == compiled


def test_frozen_weights_are_laid_out_once_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    laid: list[int] = []
    plain = backend.Llama.of
    monkeypatch.setattr(backend.Llama, "of", lambda *a, **how: laid.append(1) or plain(*a, **how))
    model = fam.build("qwen3").requires_grad_(False)
    sampler, request = NativeSampler(model, TOKENIZER, eos=ENDS, frozen=True), Request([20, 21], 4, Sampling(6))
    for _ in range(3):
        sampler.generate([request])
    assert len(laid) == 1
    for p in model.parameters():
        p.mul_(1.2)
    sampler.load(lambda: iter(()), 1)
    for completion in sampler.generate([request])[0]:
        check_logps(sampler, request.prompt, completion)
    assert len(laid) == 2


# ------------------------------------------------------------ slots, lines, samplers that share a state


def test_a_cancelled_request_frees_its_slot_at_once() -> None:
    sampler = NativeSampler(fam.cached("qwen3"), TOKENIZER, eos=[fam.PAD], slots=2)
    first = sampler.submit(Request([20], 2, Sampling(50)))
    second = sampler.submit(Request([21], 2, Sampling(5), priority=-1))
    sampler.step()
    scheduler = sampler.stepper.scheduler
    assert {row.job.number for row in scheduler.rows.values()} == {first}
    sampler.cancel(first)
    assert scheduler.active == 0 and not scheduler.rows
    sampler.step()
    assert {row.job.number for row in scheduler.rows.values()} == {second}
    sampler.cancel(second)
    assert sampler.stepper.state is None and sampler.backend.laid is None, "weights are let go of"


def test_lines_are_used_again_and_hold_nothing_of_their_last_sample() -> None:
    """Forced marks of an ended sample, on the line that a later one gets."""
    edges = {20: fam.OPEN, fam.OPEN: 21, 21: 22, 22: 21, fam.CLOSE: 30, 50: 51, 51: 50}
    sampler = NativeSampler(fam.chain(edges), TOKENIZER, eos=[fam.EOS], slots=2)
    long = sampler.submit(Request([50], 1, Sampling(60)))
    thinking, done = sampler.submit(Request([20], 1, Sampling(20, think_budget=2))), Done()
    while thinking not in done:
        done |= {finished.number: finished.completions for finished in sampler.step()}
    assert any(done[thinking][0].forced)
    later = sampler.submit(Request([51], 1, Sampling(20)))
    finish(sampler, done)
    assert not any(done[later][0].forced) and len(done[later][0].tokens) == 20
    assert not any(done[long][0].forced)


def test_lines_are_bounded_by_slots_however_many_requests_come() -> None:
    sampler = NativeSampler(fam.cached("qwen3"), TOKENIZER, eos=[fam.PAD], slots=3)
    for i in range(40):
        sampler.submit(Request([20 + i % 9], 1, Sampling(4), i))
        sampler.step()
    assert len(sampler.stepper.scheduler.tokens) <= 3
    finish(sampler)
    assert len(sampler.stepper.scheduler.tokens) == 0, "nothing is held where nothing is in flight"


def test_the_queue_is_by_priority_then_limit_then_arrival() -> None:
    scheduler = Scheduler(TOKENIZER, [fam.EOS])
    shapes = [(0, 9), (0, 20), (1, 3), (0, 20), (1, 5)]
    for number, (priority, limit) in enumerate(shapes):
        scheduler.add(Job(number, [20], Sampling(limit), 1, limit, 0, priority=priority))
    scheduler.resize(5)
    jobs, owner = scheduler.admit(5, 100)
    assert [job.number for job in jobs] == [4, 2, 1, 3, 0] and owner.tolist() == [0, 1, 2, 3, 4]
    assert not scheduler.waiting and scheduler.position.tolist() == [1] * 5


def test_two_samplers_of_a_model_step_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """One captured state serves them in turns; while one has sequences in it the other gets its own."""
    first, second = (native("llama", {"captured": True}, monkeypatch) for _ in range(2))
    asked = [Request(random_tokens(5, i), 2, Sampling(9), i) for i in range(4)]
    numbers = [first.submit(request) for request in asked[:2]]
    first.step()
    others = second.generate(asked[2:])
    assert second.backend.state is not first.backend.state
    done = finish(first)
    mine = [c for number in numbers for c in done[number]]
    model = fam.cached("llama")
    plain = NativeSampler(model, TOKENIZER, eos=ENDS, packed=False).generate(asked)
    same([*mine, *(c for g in others for c in g)], [c for g in plain for c in g], model, asked)
