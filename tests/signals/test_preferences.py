"""Preferences as signals: the right columns at the right samples, from the reference or from a file, and nothing that
cannot be trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import families as fam
from ladder.base.errors import UserError
from ladder.contract.training import Pair, Sample, Signal, Unit
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import DPO, KTO
from ladder.packing.pack import sequences
from ladder.signals.examples import Examples
from ladder.signals.preferences import Preferences, at_end
from ladder.signals.reference import REF, filled, kept
from ladder.signals.unpaired import Unpaired, kl_z0, mismatched
from ladder.train import Learner, train


def sample(prompt: list[int], answer: list[int], holes: Sequence[int] = (), **meta: Any) -> Sample:
    mask = [False] * len(prompt) + [i not in holes for i in range(len(answer))]
    return Sample(torch.tensor(prompt + answer), torch.tensor(mask), {}, meta)


def pairs(n: int = 5) -> list[Unit]:
    made: list[Unit] = []
    for i in range(n):
        prompt, where = [10 + i] * (4 + i % 3), f"a.jsonl:{i + 1}"
        chosen = sample(prompt, [30 + i, 5, 6], [1], origin=where)
        made.append(Pair(chosen, sample(prompt, [50 + i, *[7] * (i % 4)], origin=where)))
    return made


def answers(n: int = 6) -> list[Unit]:
    """Labelled answers: two to each prompt, one of them liked."""
    return [
        sample([10 + i // 2] * (4 + i // 2), [30 + i, *[5] * (i % 3)], origin=f"a.jsonl:{i + 1}", label=i % 2 == 0)
        for i in range(n)
    ]


class Says:
    """A reference with the log-probability -(token + shift) / 10 at every trained token, which counts its calls."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift, self.asked = shift, 0

    def __call__(self, units: Sequence[Unit]) -> list[dict[str, Tensor]]:
        self.asked += len(list(sequences(units)))
        return [{"logps": self.of(s)} for s in sequences(units)]

    def of(self, s: Sample) -> Tensor:
        return torch.where(s.mask, -(s.tokens + self.shift) / 10, torch.zeros(()))


def flat(batches: Sequence[Sequence[Unit]]) -> list[Sample]:
    return [s for units in batches for s in sequences(units)]


# ---------------------------------------------------------------- pairs


def test_each_side_of_a_pair_gets_its_reference_logps() -> None:
    given = pairs()
    signal: Signal = Preferences(Examples(given, 2, epochs=2), Says())
    batches = list(signal.batches())
    assert [len(b) for b in batches] == [2, 2, 1] * 2
    for s in flat(batches):
        assert torch.equal(s.cols[REF], Says().of(s)) and s.cols[REF].dtype == torch.float32
    chosen = [int(u.chosen.tokens[0]) for b in batches[:3] for u in b if isinstance(u, Pair)]
    assert sorted(chosen) == [10, 11, 12, 13, 14], "each pair once an epoch"
    assert all(REF not in s.cols for s in sequences(given)), "the pairs given are left as they are"
    assert signal.metrics()["epoch"] == 2.0
    signal.observe(lambda: iter(()), 1)


def test_without_a_reference_pairs_are_yielded_unchanged() -> None:
    given = pairs()
    ids = {id(u) for u in given}
    assert {id(u) for b in Preferences(Examples(given, 2)).batches() for u in b} == ids
    ready = filled(given, Says(3))
    dealt = flat(list(Preferences(Examples(ready, 2)).batches()))
    assert all(torch.equal(s.cols[REF], Says(3).of(s)) for s in dealt)


def test_reference_logps_from_the_file_equal_those_per_batch(tmp_path: Path) -> None:
    reference = Says()
    signal = Preferences(Examples(pairs(), 2, epochs=3), reference)
    signal.keep(tmp_path / "refs", "model a")
    assert reference.asked == 10 and signal.reference is None
    dealt = flat(list(signal.batches()))
    assert reference.asked == 10 and len(dealt) == 30
    assert all(torch.equal(s.cols[REF], reference.of(s)) for s in dealt)
    silent = Says(99)
    again = Preferences(Examples(pairs(), 2, epochs=3), silent)
    again.keep(tmp_path / "refs", "model a")
    assert silent.asked == 0, "the file was read"
    assert all(torch.equal(a.cols[REF], b.cols[REF]) for a, b in zip(dealt, flat(list(again.batches())), strict=True))
    assert again.state()["digest"] == Examples(pairs(), 2).digest, "what is dealt is the same data"
    assert [p.suffix for p in (tmp_path / "refs").iterdir()] == [".safetensors"], "nothing half-written stays"


def test_a_reference_file_belongs_to_one_model_and_one_data_set(tmp_path: Path) -> None:
    def asked(units: Sequence[Unit], model: str) -> int:
        reference = Says()
        kept(units, reference, tmp_path, model)
        return reference.asked

    assert asked(pairs(), "a") == 10
    assert asked(pairs(), "a") == 0
    assert asked(pairs(), "b") == 10
    assert asked(pairs(4), "a") == 8
    other = pairs()
    assert isinstance(other[2], Pair)
    other[2].chosen.mask[-1] = False
    assert asked(other, "a") == 10
    assert asked(pairs()[::-1], "a") == 10


def test_a_damaged_reference_file_is_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    kept(pairs(), Says(), tmp_path, "a")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"damaged.*delete the file") as error:
        kept(pairs(), Says(), tmp_path, "a")
    assert error.value.file == path
    save_file({REF: torch.zeros(3)}, path)
    with pytest.raises(UserError, match="holds 3 log-probabilities, not"):
        kept(pairs(), Says(), tmp_path, "a")
    save_file({"other": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="damaged"):
        kept(pairs(), Says(), tmp_path, "a")


@pytest.mark.parametrize("keep", [False, True])
def test_resumed_at_every_step_it_yields_the_same_pairs(keep: bool, tmp_path: Path) -> None:
    def fresh(cls: type, units: list[Unit]) -> Any:
        signal = cls(Examples(units, 2, epochs=3, seed=4), *([Says(1)] if cls is Unpaired else []), Says())
        if keep:
            signal.keep(tmp_path, "a")
        return signal

    for cls, units in ((Preferences, pairs), (Unpaired, answers)):
        signal, states, seen = fresh(cls, units()), [], []
        states.append(signal.state())
        for batch in signal.batches():
            seen.append(describe(batch))
            states.append(json.loads(json.dumps(signal.state())))
        for at, state in enumerate(states):
            again = fresh(cls, units())
            again.restore(state)
            assert [describe(b) for b in again.batches()] == seen[at:]


def describe(batch: Sequence[Unit]) -> list[Any]:
    return [(s.tokens.tolist(), {k: v.tolist() for k, v in s.cols.items()}) for s in sequences(batch)]


BAD_PAIRS: list[tuple[Any, str]] = [
    (sample([10] * 4, [1], origin="a.jsonl:9"), "a.jsonl:9 is not a pair"),
    (Pair(sample([10] * 4, [1], origin="a.jsonl:9"), sample([10] * 4, [1])), "a.jsonl:9: .* are the same"),
    (Pair(sample([10] * 4, [1]), sample([10] * 4, [1]), {"origin": "b.jsonl:3"}), "b.jsonl:3: .* are the same"),
    (Pair(sample([10] * 4, [1]), sample([10] * 4, [1])), "example 6: .* are the same"),
    (Pair(sample([10] * 4, [1]), sample([11] * 4, [2])), "example 6: .* different prompts"),
    (Pair(sample([10] * 4, [1]), sample([10] * 5, [2])), "example 6: .* different prompts"),
    (Pair(sample([10] * 4, [1]), sample([10] * 4, [2], [0])), "no token in it is trained"),
]


@pytest.mark.parametrize(("unit", "words"), BAD_PAIRS)
def test_pairs_that_cannot_be_trained_on(unit: Unit, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Preferences(Examples([*pairs(), unit], 2))


def test_a_reference_and_its_column_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"a.jsonl:1 has the column 'ref_logps' already") as error:
        Preferences(Examples(filled(pairs(), Says()), 2), Says())
    assert error.value.field == "reference"
    with pytest.raises(UserError, match="already"):
        Unpaired(Examples(filled(answers(), Says()), 2), Says(), Says())


# ---------------------------------------------------------------- answers with labels


def test_mismatched_joins_each_prompt_with_the_next_answer_to_another_prompt() -> None:
    given = [
        sample([1, 1], [20, 21, 22], [1]),
        sample([1, 1], [30]),
        sample([2, 2, 2], [40, 41]),
        sample([3], [50, 51, 52], [0]),  # its first trained token is the second of the answer
        sample([3], [60]),
    ]
    made = mismatched(given)
    assert [s.tokens.tolist() for s in made] == [
        [1, 1, 40, 41],
        [1, 1, 40, 41],
        [2, 2, 2, 51, 52],
        [3, 50, 60],
        [3, 20, 21, 22],
    ]
    assert [s.mask.tolist() for s in made[2:]] == [
        [False, False, False, True, True],
        [False, False, True],
        [False, True, False, True],
    ]
    assert all(not s.cols for s in made)


def test_a_mismatched_sample_is_no_longer_than_the_longest_example() -> None:
    first, second = mismatched([sample([1, 2, 3, 4], [5]), sample([6], [7, 8, 9])])
    assert first.tokens.tolist() == [1, 2, 3, 4, 7] and first.mask.tolist() == [False] * 4 + [True]
    assert second.tokens.tolist() == [6, 5]


def test_mismatched_with_prompts_all_different_is_the_papers_shift() -> None:
    given = [sample([i] * 3, [i + 20]) for i in range(7)]
    assert [s.tokens.tolist() for s in mismatched(given)] == [[i] * 3 + [(i + 1) % 7 + 20] for i in range(7)]
    for n in (1, 3):
        with pytest.raises(UserError, match="all prompts are the same"):
            mismatched([sample([9, 9], [i]) for i in range(n)])


def test_z0_by_hand() -> None:
    # log-ratios .5 + .25 and -.25 at the trained tokens: the mean of .75 and -.25
    p = [torch.tensor([9.0, -1.0, -1.0]), torch.tensor([0.0, -2.0])]
    r = [torch.tensor([0.0, -1.5, -1.25]), torch.tensor([0.0, -1.75])]
    masks = [torch.tensor([False, True, True]), torch.tensor([False, True])]
    assert kl_z0(p, r, masks) == pytest.approx(0.25)
    assert kl_z0(r, p, masks) == 0.0, "a KL is not negative"


def test_columns_of_answers_with_labels() -> None:
    """The policy gives every token .05 less than the reference at shift 1, so z0 is .05 an answer's trained tokens."""
    policy, reference = Says(0.5), Says(1.0)
    signal: Signal = Unpaired(Examples(answers(), 3), policy, reference)
    for units in signal.batches():
        lengths = []
        for s in sequences(units):
            assert torch.equal(s.cols[REF], reference.of(s))
            assert s.cols["label"].tolist() == [float(s.meta["label"])] * len(s.tokens)
            place = int(s.tokens[s.mask][0]) - 30
            other = mismatched(list(sequences(answers())))[place]
            assert other.tokens[0] == s.tokens[0]
            lengths.append(int(other.mask.sum()))
        z0 = {x for s in sequences(units) for x in s.cols["kl_z0"].tolist()}
        assert len(z0) == 1, "one number for the whole step"
        assert z0.pop() == pytest.approx(0.05 * sum(lengths) / len(lengths), rel=1e-5)
        assert signal.metrics()["liked"] == pytest.approx(sum(bool(u.meta["label"]) for u in units) / len(units))
    assert policy.asked == 6, "the policy is asked about the mismatched answers only"
    assert reference.asked == 12


def test_z0_follows_the_policy_and_the_reference_can_be_kept(tmp_path: Path) -> None:
    policy, reference = Says(1.0), Says(1.0)
    signal = Unpaired(Examples(answers(), 6, epochs=2), policy, reference)
    signal.keep(tmp_path, "a")
    assert reference.asked == 12 and signal.reference is None
    batches = signal.batches()
    assert next(sequences(next(batches))).cols["kl_z0"][0] == 0
    policy.shift = -1.0
    assert next(sequences(next(batches))).cols["kl_z0"][0] > 0.1
    assert reference.asked == 12 and policy.asked == 12


BAD_LABELS: list[tuple[Any, str]] = [
    *[
        (sample([9] * 4, [1], origin="a.jsonl:9", label=x), "a.jsonl:9: the label must be true or false")
        for x in (1, 0.0, "true", None)
    ],
    (sample([9] * 4, [1]), "example 7: the label must be true or false, not None"),
    (Pair(sample([9] * 4, [1]), sample([9] * 4, [2])), "example 7 is a pair"),
]


@pytest.mark.parametrize(("unit", "words"), BAD_LABELS)
def test_labels_that_are_not_boolean(unit: Unit, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Unpaired(Examples([*answers(), unit], 2), Says(), Says())


def test_labels_that_are_all_equal() -> None:
    for label in (True, False):
        units = [replace(u, meta=u.meta | {"label": label}) for u in answers() if isinstance(u, Sample)]
        with pytest.raises(UserError, match=f"every label is {str(label).lower()}"):
            Unpaired(Examples(units, 2), Says(), Says())


def test_a_state_of_other_labels_is_refused() -> None:
    state = Unpaired(Examples(answers(), 2), Says(), Says()).state()
    flipped = [replace(u, meta=u.meta | {"label": not u.meta["label"]}) for u in answers() if isinstance(u, Sample)]
    with pytest.raises(UserError, match="other labels"):
        Unpaired(Examples(flipped, 2), Says(), Says()).restore(state)


# ---------------------------------------------------------------- a sequence's end


def test_at_end_masks_one_token_behind_the_last() -> None:
    unit = pairs()[1]
    assert isinstance(unit, Pair)
    asked = at_end(unit, 3)
    assert isinstance(asked, Pair) and asked.meta == unit.meta
    for before, after in zip(sequences([unit]), sequences([asked]), strict=True):
        assert after.tokens.tolist() == [*before.tokens.tolist(), 3]
        assert after.mask.tolist() == [False] * len(before.tokens) + [True]
        assert after.meta == before.meta


# ---------------------------------------------------------------- with a model


def learn(signal: Signal, engine: Engine, loss: Any, steps: int) -> list[dict[str, float]]:
    seen: list[dict[str, float]] = []

    def on_step(step: int, figures: dict[str, float]) -> bool:
        seen.append(figures)
        return False

    train(signal, [Learner(engine, loss)], steps=steps, on_step=on_step)
    return seen


@pytest.mark.parametrize("keep", [False, True])
def test_dpo_starts_at_ln_2_and_learns_the_pairs(keep: bool, tmp_path: Path) -> None:
    engine = Engine(fam.build("llama"), Optim(lr=3e-3, weight_decay=0.0))
    signal = Preferences(Examples(pairs(8), 4, epochs=None), engine.freeze().forward)
    if keep:
        signal.keep(tmp_path, "the first weights")
    seen = learn(signal, engine, DPO(beta=0.5), 12)
    assert seen[0]["first/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert seen[-1]["accuracy"] == 1.0 and seen[-1]["loss"] < 0.3
    assert seen[-1]["rewards/chosen"] > seen[-1]["rewards/rejected"]


def test_kto_starts_at_one_half_and_separates_the_answers() -> None:
    engine = Engine(fam.build("llama"), Optim(lr=3e-3, weight_decay=0.0))
    signal = Unpaired(Examples(answers(8), 4, epochs=None), engine.forward, engine.freeze().forward)
    seen = learn(signal, engine, KTO(beta=0.5), 16)
    assert seen[0]["kl_z0"] == 0.0
    assert seen[0]["first/loss"] == pytest.approx(0.5, abs=1e-6)
    assert seen[-1]["rewards/desirable"] > seen[-1]["rewards/undesirable"] + 1
    assert seen[-1]["loss"] < 0.4


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def parts() -> tuple[Unpaired, Engine]:
        engine = Engine(fam.build("llama"), Optim(lr=3e-3))
        return Unpaired(Examples(answers(8), 3, epochs=None), engine.forward, engine.freeze().forward), engine

    signal, engine = parts()
    learn(signal, engine, KTO(), 4)
    whole = dict(engine.weights())
    first, e1 = parts()
    learn(first, e1, KTO(), 2)
    e1.save(tmp_path)
    second, e2 = parts()
    e2.load(tmp_path)
    second.restore(json.loads(json.dumps(first.state())))
    learn(second, e2, KTO(), 2)
    assert all(torch.equal(whole[n], w) for n, w in e2.weights())
