"""The part of the samplers' contract that is about steps: requests that join and leave, cancellation, priorities,
further turns, new weights. `sampler_contract.PROMISES` holds these promises, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ladder.base.errors import UserError
from ladder.contract.rollouts import Completion, Request, Sampler, Sampling

if TYPE_CHECKING:
    from sampler_contract import Case

Done = dict[int, list[Completion]]


def finish(sampler: Sampler, done: Done | None = None) -> Done:
    """Steps until nothing is in flight: the completions of each request, after those in `done`."""
    done = {} if done is None else done
    while sampler.busy:
        for finished in sampler.step():
            assert finished.number not in done, "a request finishes once"
            done[finished.number] = finished.completions
    assert sampler.step() == []
    return done


def generate_is_submit_and_step(case: Case) -> None:
    asked, sampler = case.requests(), case.make()
    numbers = [sampler.submit(request) for request in asked]
    assert len(set(numbers)) == len(asked) and sampler.busy
    done = finish(sampler)
    assert set(done) == set(numbers)
    case.alike(asked, [done[number] for number in numbers], case.make().generate(asked))


def requests_join_while_others_are_decoded(case: Case) -> None:
    """A request a step, so that each meets others of another age: all get what they get in one call."""
    asked, sampler = case.requests(), case.make()
    done: Done = {}
    numbers: list[int] = []
    for request in asked:
        numbers.append(sampler.submit(request))
        done |= {finished.number: finished.completions for finished in sampler.step()}
    finish(sampler, done)
    case.alike(asked, [done[number] for number in numbers], case.make().generate(asked))


def a_cancelled_request_returns_nothing(case: Case) -> None:
    """Before its first step and amid its tokens; the others are as they would be without it."""
    asked, sampler = case.requests(), case.make()
    numbers = [sampler.submit(request) for request in asked]
    sampler.cancel(numbers[0])
    done = {finished.number: finished.completions for finished in sampler.step()}
    running = next((number for number in numbers[1:] if number not in done), numbers[1])
    sampler.cancel(running)
    done.pop(running, None)
    finish(sampler, done)
    left = [i for i, number in enumerate(numbers) if i and number != running]
    assert set(done) == {numbers[i] for i in left}
    others = [asked[i] for i in left]
    case.alike(others, [done[numbers[i]] for i in left], case.make().generate(others))
    sampler.cancel(numbers[0])
    only = sampler.submit(asked[0])
    sampler.cancel(only)
    assert not sampler.busy and sampler.step() == []
    assert len(sampler.generate(asked)) == len(asked)


def a_higher_priority_is_served_first(case: Case) -> None:
    """Where slots are scarce; and never later than a lower one of the same shape."""
    sampler, sampling = case.make(), Sampling(case.max_tokens)
    priorities = [0, 2, 1, 2, 3, 0]
    shape = case.prompts[0]
    numbers = [sampler.submit(Request(list(shape), 1, sampling, 3, p)) for p in priorities]
    step_of: dict[int, int] = {}
    for step in range(10_000):
        step_of |= {finished.number: step for finished in sampler.step()}
        if not sampler.busy:
            break
    order = [step_of[number] for number in numbers]
    pairs = [(i, j) for i, p in enumerate(priorities) for j, q in enumerate(priorities) if p > q]
    assert all(order[i] <= order[j] for i, j in pairs)
    if case.scarce:
        assert all(order[i] < order[j] for i, j in pairs)


def a_turn_is_as_if_the_sequence_were_read_anew(case: Case) -> None:
    """Greedy answers, three turns of two conversations side by side, with a request between."""
    greedy, sampler = Sampling(case.max_tokens, temperature=0), case.make()
    asked = [Request(list(prompt), 1, greedy, 4, keep=True) for prompt in case.prompts[:2]]
    sequences = [list(request.prompt) for request in asked]
    numbers = [sampler.submit(request) for request in asked]
    for turn in range(3):
        other = sampler.submit(case.requests()[2])
        done = finish(sampler)
        assert set(done) == {*numbers, other}
        for i, number in enumerate(numbers):
            whole = Request(sequences[i], 1, greedy, 4)
            case.alike([whole], [done[number]], case.make().generate([whole]))
            written = list(case.prompts[turn + 1][:2])
            sequences[i] = [*sequences[i], *done[number][0].tokens, *written]
            numbers[i] = sampler.continue_from(number, 0, written)
    finish(sampler)
    for number in numbers:
        sampler.cancel(number)


def a_turn_needs_a_kept_sample(case: Case) -> None:
    """Of a request that asked for it, once, until it is cancelled; and tokens that an environment wrote."""
    sampler, greedy = case.make(), Sampling(4, temperature=0)
    plain = sampler.submit(Request(list(case.prompts[0]), 1, greedy))
    kept = sampler.submit(Request(list(case.prompts[0]), 2, greedy, keep=True))
    finish(sampler)
    refused(lambda: sampler.continue_from(plain, 0, [20]))
    refused(lambda: sampler.continue_from(kept, 2, [20]))
    refused(lambda: sampler.continue_from(kept, 0, []))
    turn = sampler.continue_from(kept, 0, [20], keep=False)
    refused(lambda: sampler.continue_from(kept, 0, [20]))
    assert set(finish(sampler)) == {turn}
    refused(lambda: sampler.continue_from(turn, 0, [20]))
    sampler.cancel(kept)
    refused(lambda: sampler.continue_from(kept, 1, [20]))


def refused(call: Callable[[], object], kind: type[Exception] = UserError) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError("that should be refused")


def completions_have_the_version_that_sampled_them(case: Case) -> None:
    sampler = case.make()
    assert {c.version for group in sampler.generate(case.requests()) for c in group} == {sampler.version} == {0}
    sampler.load(case.weights, 7)
    assert {c.version for group in sampler.generate(case.requests()) for c in group} == {sampler.version} == {7}


def weights_never_change_amid_a_sequence(case: Case) -> None:
    """New weights are refused while requests are in flight, or wait for them; what is submitted then is of the new."""
    asked, sampler = case.requests(), case.make()
    numbers = [sampler.submit(request) for request in asked]
    done = {finished.number: finished.completions for finished in sampler.step()}
    try:
        sampler.load(case.weights, 5)
    except UserError:
        assert not case.owns, "a sampler with its own copy of the weights lets new ones wait"
        finish(sampler, done)
        sampler.load(case.weights, 5)
        later = sampler.submit(asked[0])
    else:
        later = sampler.submit(asked[0])
        finish(sampler, done)
        assert {c.version for c in done.pop(later)} == {5}
        later = sampler.submit(asked[0])
    assert {c.version for number in numbers for c in done[number]} == {0}
    case.alike(asked, [done[number] for number in numbers], case.make().generate(asked))
    assert {c.version for c in finish(sampler)[later]} == {5}


def progress_counts_up_to_what_was_submitted(case: Case) -> None:
    told: list[tuple[int, int]] = []
    sampler, asked = case.make(), case.requests()
    sampler.progress = lambda done, total: told.append((done, total))
    total = sum(request.n for request in asked)
    sampler.generate(asked)
    assert told[-1] == (total, total) and told == sorted(told) and {t for _, t in told} == {total}
    told.clear()
    sampler.generate(asked[:1])
    assert told[-1] == (asked[0].n, asked[0].n), "counts begin anew"


def what_cannot_be_served_leaves_nothing_behind(case: Case) -> None:
    """The request itself is refused, at once; `generate` ends the others that came with it."""
    sampler, asked = case.make(), case.requests()
    for wrong in (Request([]), Request([20], 0), Request([20], 1, Sampling(0))):
        refused(lambda wrong=wrong: sampler.submit(wrong))
        refused(lambda wrong=wrong: sampler.generate([asked[0], wrong]))
        assert not sampler.busy
    case.alike(asked, sampler.generate(asked), case.make().generate(asked))


def generate_loses_no_others_completions(case: Case) -> None:
    sampler, asked = case.make(), case.requests()
    refused(lambda: sampler.generate([Request(list(case.prompts[0]), keep=True)]), ValueError)
    number = sampler.submit(asked[0])
    refused(lambda: sampler.generate(asked[1:]), ValueError)
    assert set(finish(sampler)) == {number}


STEPS: tuple[Callable[[Case], None], ...] = (
    generate_is_submit_and_step,
    requests_join_while_others_are_decoded,
    a_cancelled_request_returns_nothing,
    a_higher_priority_is_served_first,
    a_turn_is_as_if_the_sequence_were_read_anew,
    a_turn_needs_a_kept_sample,
    completions_have_the_version_that_sampled_them,
    weights_never_change_amid_a_sequence,
    progress_counts_up_to_what_was_submitted,
    what_cannot_be_served_leaves_nothing_behind,
    generate_loses_no_others_completions,
)
