"""The examples signal: every row once an epoch, and the same batches wherever a run was cut."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from ladder.base.errors import UserError
from ladder.contract.training import Pair, Sample, Signal, Unit
from ladder.signals.examples import Examples


def sample(i: int, length: int = 3, trained: bool = True) -> Sample:
    tokens = torch.full((length,), i, dtype=torch.int64)
    mask = torch.ones(length, dtype=torch.bool) if trained else torch.zeros(length, dtype=torch.bool)
    mask[0] = False
    return Sample(tokens, mask, {}, {"origin": f"a.jsonl:{i + 1}"})


def some(n: int) -> list[Unit]:
    return [sample(i, 2 + (i * 7) % 11) for i in range(n)]


def names(batches: list[list[Unit]]) -> list[list[int]]:
    return [[int((u if isinstance(u, Sample) else u.chosen).tokens[0]) for u in batch] for batch in batches]


@pytest.mark.parametrize("by", ["sequences", "tokens"])
@pytest.mark.parametrize(("n", "batch"), [(1, 13), (10, 13), (64, 16), (97, 20), (100, 100)])
def test_each_row_once_per_epoch(n: int, batch: int, by: str) -> None:
    signal = Examples(some(n), batch, by=by, epochs=3, seed=1)  # type: ignore[arg-type]
    seen = names(list(signal.batches()))
    k = signal.steps_per_epoch
    assert len(seen) == signal.steps == 3 * k
    epochs = [seen[e * k : (e + 1) * k] for e in range(3)]
    for epoch in epochs:
        assert Counter(i for b in epoch for i in b) == Counter(range(n))
        assert all(epoch)
    if n > 1:
        assert epochs[0] != epochs[1]


def test_steps_are_of_equal_size() -> None:
    sizes = [len(b) for b in Examples(some(97), 20).batches()]
    assert sorted(sizes) == [19, 19, 19, 20, 20]
    by_tokens = Examples(some(200), 40, by="tokens")
    tokens = [sum(len(u.tokens) for u in b if isinstance(u, Sample)) for b in by_tokens.batches()]
    assert len(tokens) == sum(tokens) // 40
    assert all(40 - 12 <= t <= 41 + 12 for t in tokens)


@pytest.mark.parametrize("by", ["sequences", "tokens"])
def test_resumed_at_every_step_it_yields_the_same_batches(by: str) -> None:
    def fresh() -> Examples:
        return Examples(some(23), 17 if by == "tokens" else 4, by=by, epochs=3, seed=5, in_order=0.3)  # type: ignore[arg-type]

    signal, states, seen = fresh(), [], []
    states.append(signal.state())
    for batch in signal.batches():
        seen.append(names([batch])[0])
        states.append(json.loads(json.dumps(signal.state())))
    assert len(seen) > 9
    for step, state in enumerate(states):
        again = fresh()
        again.restore(state)
        assert names(list(again.batches())) == seen[step:]
    # a signal that was already running can be set back, too
    running = signal.batches()
    signal.restore(states[2])
    assert names([next(running)]) == [seen[2]]


def test_endless_epochs() -> None:
    batches = Examples(some(5), 2, epochs=None).batches()
    seen = names([next(batches) for _ in range(30)])
    assert Counter(i for b in seen for i in b) == Counter(dict.fromkeys(range(5), 10))


def test_the_order_depends_on_the_seed_only() -> None:
    def first(seed: int) -> list[list[int]]:
        torch.manual_seed(seed + 100)
        return names(list(Examples(some(50), 7, seed=seed).batches()))

    assert first(1) == first(1) != first(2)


def test_in_order_keeps_the_order_of_the_first_share() -> None:
    flat = [i for b in names(list(Examples(some(40), 4, epochs=2, in_order=0.25).batches())) for i in b]
    assert flat[:10] == list(range(10)) and flat[10:40] != list(range(10, 40))
    assert sorted(flat[10:40]) == list(range(10, 40))
    assert flat[40:50] != list(range(10))


def test_a_custom_order() -> None:
    flat = [i for b in names(list(Examples(some(6), 2, order=lambda e: range(5, -1, -1)).batches())) for i in b]
    assert flat == [5, 4, 3, 2, 1, 0]
    with pytest.raises(ValueError, match="not a permutation"):
        next(Examples(some(6), 2, order=lambda e: [0] * 6).batches())


def test_pairs_stay_together() -> None:
    pairs: list[Unit] = [Pair(sample(i), sample(i + 50, 5)) for i in range(6)]
    batches = list(Examples(pairs, 16, by="tokens").batches())
    assert [len(b) for b in batches] == [2, 2, 2]


def test_the_state_of_other_data_is_refused() -> None:
    state = Examples(some(9), 2).state()
    with pytest.raises(UserError, match="other examples"):
        Examples(some(8), 2).restore(state)
    changed = some(9)
    assert isinstance(changed[3], Sample)
    changed[3].mask[-1] = False
    with pytest.raises(UserError, match="other examples"):
        Examples(changed, 2).restore(state)
    with pytest.raises(UserError, match="another batch size"):
        Examples(some(9), 3).restore(state)


def test_examples_that_cannot_be_split_into_steps_are_refused() -> None:
    with pytest.raises(UserError, match="no examples"):
        Examples([], 2)
    with pytest.raises(UserError, match="both must be at least 1"):
        Examples(some(3), 0)
    with pytest.raises(UserError, match=r"a.jsonl:2.*9 tokens long"):
        Examples(some(3), 5, by="tokens")
    with pytest.raises(UserError, match=r"a.jsonl:8: no token in it is trained"):
        Examples([sample(1), sample(7, trained=False)], 2)
    with pytest.raises(UserError, match="share"):
        Examples(some(3), 1, in_order=2)
    with pytest.raises(UserError, match="both given"):
        Examples(some(3), 1, in_order=0.5, order=lambda e: [0, 1, 2])


def test_figures() -> None:
    signal: Signal = Examples([sample(0, 4), sample(1, 6)], 2)
    next(signal.batches())
    assert signal.metrics() == {
        "epoch": 1.0,
        "sequences": 2.0,
        "length/mean": 5.0,
        "length/max": 6.0,
        "trained": 0.8,
    }
