"""Rewards and selection as signals: what could not be judged is out of everything, numbers are right by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import families as fam
from families import CLOSE, EOS
from ladder.contract.rollouts import Completion, InfraError, Invalid, Outcome, Rollout, Sampling, Score, Stop, Task
from ladder.contract.training import Sample, Signal, Unit
from ladder.credit.base import to_sample
from ladder.credit.group import GroupCredit
from ladder.rewards.judge import RewardFailure
from ladder.rollout.collect import Collector
from ladder.rollout.scripted import Answer, ScriptedSampler
from ladder.signals.prompts import Prompts
from ladder.signals.rewards import Rewards
from ladder.signals.select import Funnel, Select

TOKENIZER = fam.tokenizer()
CREDIT = {f.name for f in fields(GroupCredit)}
TASKS = [Task(f"t{i}", f"w{20 + i}") for i in range(4)]


def judge(group: Sequence[Rollout]) -> list[Outcome]:
    """The number in an answer's first word is its score; "w90" is Invalid, "w91" an InfraError."""
    outcomes: list[Outcome] = []
    for r in group:
        word = r.text.split()[0]
        if word == "w90":
            outcomes.append(Invalid("no number"))
        elif word == "w91":
            outcomes.append(InfraError("timed out"))
        else:
            value = float(word[1:]) - 40
            outcomes.append(Score(value, {"right": float(value > 0)} | ({"even": 1.0} if value % 2 == 0 else {})))
    return outcomes


def signal(*answers: Sequence[Answer], max_tokens: int = 8, **options: Any) -> Rewards:
    """One task for each item of `answers`, the texts of the task's sampled answers."""
    script = {str(t.prompt): a for t, a in zip(TASKS, answers, strict=False)}
    tasks = TASKS[: len(answers)]
    n = len(answers[0])
    sampler = ScriptedSampler(script, TOKENIZER)
    collect = Collector(sampler, lambda p: TOKENIZER.encode(p), n, Sampling(max_tokens), 0, "train")
    of_credit = {"advantage": "group_mean"} | {k: v for k, v in options.items() if k in CREDIT}
    of_signal = {"max_failed": 1.0, "load": sampler.load} | {k: v for k, v in options.items() if k not in CREDIT}
    return Rewards(lambda step: tasks, collect, judge, GroupCredit(**of_credit), **of_signal)


def step(rewards: Rewards) -> list[Sample]:
    units = next(rewards.batches())
    assert all(isinstance(u, Sample) for u in units)
    return [u for u in units if isinstance(u, Sample)]


def advantages(samples: Sequence[Sample]) -> list[float]:
    """One number per sample: a column that is the same at every token."""
    for s in samples:
        assert len(set(s.cols["advantages"].tolist())) == 1
    return [round(float(s.cols["advantages"][0]), 5) for s in samples]


# ------------------------------------------------------------ judged answers


def test_rewards_satisfy_the_signal_protocol() -> None:
    made: Signal = signal(["w40", "w41"])
    assert made.state() == {"step": 0, "version": 0, "credit": {}}


def test_advantages_and_meta_of_a_sample() -> None:
    made = signal(["w40 w50", "w43"], ["w41", "w45"])
    made.observe(lambda: iter(()), 6)
    samples = step(made)
    assert advantages(samples) == [-1.5, 1.5, -2.0, 2.0]
    assert [s.meta for s in samples] == [
        {"group": g, "version": 6, "task": f"t{g}"} for g in (0, 0, 1, 1)
    ]
    first = samples[0]
    assert first.tokens.tolist() == [20, 40, 50, EOS] and first.mask.tolist() == [False, True, True, True]
    assert first.cols["old_logps"].tolist() == first.cols["sampler_logps"].tolist() == [0.0, -1.0, -1.0, -1.0]
    assert "ref_logps" not in first.cols


def test_figures_of_a_step() -> None:
    made = signal(["w40 w50", "w43"], ["w41", "w41 w42 w43 w44"], max_tokens=4)
    step(made)
    figures = made.metrics()
    assert figures["reward/mean"] == pytest.approx(5 / 4)
    assert figures["reward/std"] == pytest.approx(float(np.std([0, 3, 1, 1])))
    assert (figures["length/mean"], figures["length/max"]) == ((3 + 2 + 2 + 4) / 4, 4)
    assert figures["truncated"] == 0.25 and figures["rollouts"] == 4
    assert figures["groups/no_signal"] == 0.5
    assert figures["reward/right"] == 0.75 and figures["reward/even"] == 1.0  # of those that have the part
    assert {"seconds/rollout", "seconds/reward"} <= set(figures)
    assert "kl/response" not in figures and "reward/penalised" not in figures


def test_failed_rewards_leave_loss_and_baseline_and_are_counted() -> None:
    made = signal(["w90", "w41", "w91", "w44"], ["w42", "w40", "w91", "w43"])
    samples = step(made)
    assert [s.tokens[1].item() for s in samples] == [41, 44, 42, 40, 43]
    assert advantages(samples) == [-1.5, 1.5, round(1 / 3, 5), round(-5 / 3, 5), round(4 / 3, 5)]
    figures = made.metrics()
    assert (figures["invalid"], figures["infra_errors"]) == (1 / 8, 2 / 8)
    assert figures["reward/mean"] == pytest.approx(10 / 5)
    assert all(torch.isfinite(s.cols["advantages"]).all() for s in samples)


@pytest.mark.parametrize("silent", [True, False])
def test_a_single_answer_has_no_baseline(silent: bool) -> None:
    samples = step(signal(["w90", "w44", "w91"], drop_zero_variance=silent))
    assert advantages(samples) == ([] if silent else [0.0])


def test_a_step_whose_rewards_all_failed_yields_no_units_and_counts_them() -> None:
    made = signal(["w90", "w91"], reference=reference, kl_coef=0.1, drop_zero_variance=False)
    assert step(made) == []
    figures = made.metrics()
    assert (figures["invalid"], figures["infra_errors"], figures["groups/no_signal"]) == (0.5, 0.5, 1.0)
    assert "reward/mean" not in figures, "the mean of nothing is no figure"
    assert all(math.isfinite(v) for v in figures.values())


def test_too_many_failures_stop_the_run() -> None:
    answers = ["w90", "w91", "w91", *["w41"] * 7]
    assert len(step(signal(answers, max_failed=0.3, drop_zero_variance=False))) == 7
    failing = signal(answers, max_failed=0.29)
    with pytest.raises(RewardFailure, match=r"3 of 10 .* step 0 .*29%.*InfraError: timed out; Invalid: no number"):
        step(failing)
    assert failing.state()["step"] == 0, "the step was not taken"


def test_by_default_a_tenth_of_the_rewards_may_fail() -> None:
    assert Rewards(lambda s: [], lambda tasks, step, version: [], judge).max_failed == 0.1


def test_on_rollouts_is_called_also_for_failing_steps_and_may_add_figures() -> None:
    told: list[tuple[int, int, int]] = []

    def tell(at: int, groups: list[list[Rollout]], judged: list[list[Outcome]]) -> dict[str, float]:
        told.append((at, len(groups), sum(isinstance(o, Score) for g in judged for o in g)))
        return {"seen": 3.0}

    made = signal(["w40", "w41"], on_rollouts=tell, stats=lambda rollouts: {"words": float(len(rollouts))})
    step(made)
    assert (made.metrics()["seen"], made.metrics()["words"]) == (3.0, 2.0)
    with pytest.raises(RewardFailure):
        step(signal(["w90", "w91"], on_rollouts=tell, max_failed=0.5))
    assert told == [(0, 1, 2), (0, 1, 0)]


# ------------------------------------------------------------ what is left out


@pytest.mark.parametrize(("silent", "kept"), [(True, [1, 1]), (False, [0, 0, 1, 1, 2, 2])])
def test_zero_variance_groups_are_dropped_unless_kept(silent: bool, kept: list[int]) -> None:
    made = signal(["w42", "w42 w50"], ["w40", "w41"], ["w40", "w40"], drop_zero_variance=silent)
    assert [s.meta["group"] for s in step(made)] == kept
    assert made.metrics()["groups/no_signal"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("skip", [True, False])
def test_truncated_answers_stay_in_the_baseline(skip: bool) -> None:
    made = signal(["w40 w50 w51 w52", "w41", "w45"], max_tokens=3, skip_truncated=skip)
    whole = [-2.0, -1.0, 3.0]
    assert advantages(step(made)) == (whole[1:] if skip else whole)
    assert made.metrics()["truncated"] == pytest.approx(1 / 3)


def test_forced_tokens_are_not_trained() -> None:
    forced = Completion([40, CLOSE, 41, EOS], [-1.0, 0.0, -2.0, -3.0], [False, True, False, False], "eos", "w40")
    one = step(signal([forced, "w44"]))[0]
    assert one.mask.tolist() == [False, True, False, True, True]
    assert one.cols["old_logps"].tolist() == [0.0, -1.0, 0.0, -2.0, -3.0]


def test_an_answer_of_forced_tokens_only_is_neither_trained_nor_compared_with() -> None:
    forced = Completion([CLOSE, EOS], [0.0, 0.0], [True, True], "eos", "w49")
    samples = step(signal([forced, "w40", "w42"], reference=reference, kl_coef=0.1))
    assert len(samples) == 2 and advantages(samples)[1] > 0


# ------------------------------------------------------------ the reference


def reference(units: Sequence[Unit]) -> list[dict[str, Tensor]]:
    """Log-probabilities as `Engine.forward` returns them: -1/4 at token 40, -2 at every other trained token."""
    columns = []
    for u in units:
        assert isinstance(u, Sample) and bool(u.mask.any())
        values = torch.where(u.tokens == 40, -0.25, -2.0)
        columns.append({"logps": torch.where(u.mask, values, 0.0)})
    return columns


def test_the_kl_penalty_by_hand() -> None:
    """logps are -1 each: "w40" + EOS has the KL (-1 + 1/4) + (-1 + 2) = 1/4, "w43 w40" + EOS has 1 - 3/4 + 1 = 5/4.

    With kl_coef 0.2 their rewards 0 and 3 become -0.05 and 2.75; less their mean 1.35: -1.4 and 1.4. In the other
    group "w41" + EOS has KL 2: 1 - 0.4 = 0.6, beside -0.05: +-0.325.
    """
    made = signal(["w40", "w43 w40"], ["w41", "w40"], kl_coef=0.2, reference=reference)
    samples = step(made)
    assert advantages(samples) == [-1.4, 1.4, 0.325, -0.325]
    assert [s.cols["ref_logps"].tolist() for s in samples] == [
        [0.0, -0.25, -2.0],
        [0.0, -2.0, -0.25, -2.0],
        [0.0, -2.0, -2.0],
        [0.0, -0.25, -2.0],
    ]
    figures = made.metrics()
    assert figures["kl/response"] == pytest.approx((0.25 + 1.25 + 2 + 0.25) / 4)
    assert figures["reward/penalised"] == pytest.approx((1.35 + 0.275) / 2)
    assert figures["reward/mean"] == 1.0  # the world's word, before the penalty


def test_columns_of_the_reference_stay_with_their_answers_when_some_leave() -> None:
    made = signal(["w90", "w40", "w91", "w43"], ["w40", "w40", "w40", "w40"], ["w40", "w42", "w90", "w41"],
                  reference=reference)  # fmt: skip
    samples = step(made)
    assert [s.tokens[1].item() for s in samples] == [40, 43, 40, 42, 41]
    for s in samples:
        assert torch.equal(s.cols["ref_logps"], reference([s])[0]["logps"])
    assert made.metrics()["kl/response"] > 0


def test_a_reference_without_coefficient_changes_no_reward() -> None:
    assert advantages(step(signal(["w40", "w43 w40"], reference=reference))) == [-1.5, 1.5]


def test_a_coefficient_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="reference"):
        signal(["w40"], kl_coef=0.1)


# ------------------------------------------------------------ steps, states, prompts


def test_new_weights_are_handed_to_the_sampler() -> None:
    made = signal(["w40", "w41"])
    sampler = made.collect.sampler  # type: ignore[attr-defined]
    made.observe(lambda: iter(()), 3)
    assert (sampler.version, sampler.loads) == (3, 1)
    assert {s.meta["version"] for s in step(made)} == {3}


def dealt(made: Rewards, steps: int) -> Iterator[tuple[list[str], list[int]]]:
    """The tasks and the keys of each step."""
    sampler = made.collect.sampler  # type: ignore[attr-defined]
    for _, batch in zip(range(steps), made.batches(), strict=False):  # in this order, or one too many is dealt
        asked, sampler.asked = sampler.asked, []
        assert batch
        yield [TOKENIZER.decode(r.prompt) for r in asked], [r.key for r in asked]
        made.observe(lambda: iter(()), made.version + 1)


def endless() -> Rewards:
    tasks = [Task(f"t{i}", f"w{20 + i}") for i in range(7)]
    sampler = ScriptedSampler(lambda prompt, i, key: f"w{40 + i}", TOKENIZER)
    collect = Collector(sampler, lambda p: TOKENIZER.encode(p), 2, Sampling(5), 0, "train")
    return Rewards(Prompts(tasks, 3, seed=2), collect, judge)


def test_resumed_anywhere_it_asks_for_the_same_answers() -> None:
    plain = list(dealt(endless(), 8))
    assert len({str(keys) for _, keys in plain}) == 8
    for cut in (1, 4, 7):
        first = endless()
        before = list(dealt(first, cut))
        state = json.loads(json.dumps(first.state()))
        again = endless()
        again.restore(state)
        assert before + list(dealt(again, 8 - cut)) == plain
        assert again.version == 8


@pytest.mark.parametrize(("n", "per_step"), [(12, 4), (7, 3), (5, 5), (1, 1)])
def test_prompts_cover_each_task_once_an_epoch(n: int, per_step: int) -> None:
    tasks = [Task(str(i), "") for i in range(n)]
    prompts = Prompts(tasks, per_step, seed=1)
    line = [t.id for at in range(3 * n) for t in prompts(at)]
    assert len(line) == 3 * n * per_step
    epochs = [line[i : i + n] for i in range(0, len(line), n)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(t.id for t in tasks)
    if n > 4:
        assert epochs[0] != epochs[1] != [t.id for t in tasks]
        assert [t.id for t in Prompts(tasks, per_step, seed=2)(0)] != line[:per_step]


@pytest.mark.parametrize("per_step", [0, 4])
def test_prompts_of_a_step_must_fit_the_tasks(per_step: int) -> None:
    with pytest.raises(ValueError, match="3 tasks"):
        Prompts([Task(str(i), "") for i in range(3)], per_step)


def test_to_sample_keeps_everything_aligned() -> None:
    r = Rollout(TASKS[0], [20, 21, 40, EOS], [False, False, True, True], [0.0, 0.0, -0.5, -1.5], "w40", "eos", 3, 7)
    sample = to_sample(r)
    assert sample.tokens.tolist() == r.tokens and sample.mask.tolist() == r.mask
    assert sample.cols["old_logps"].tolist() == sample.cols["sampler_logps"].tolist() == r.logps
    assert sample.meta == {"group": 3, "version": 7, "task": "t0"}


# ------------------------------------------------------------ selection


def rollout(text: str, stop: Stop = "eos", group: int = 0) -> Rollout:
    return Rollout(TASKS[group], [20, 40], [False, True], [0.0, -1.0], text, stop, group)


def texts(kept: Sequence[Rollout]) -> list[str]:
    return [r.text for r in kept]


def test_the_first_right_answers_are_kept_and_each_gate_is_counted() -> None:
    group = [rollout(t) for t in ("wrong", "a", "a", "broken", "bad b", "c", "d")] + [rollout("cut", "length")]
    outcomes: list[Outcome] = [Score(1.0)] * 8
    outcomes[0], outcomes[3] = Score(0.5), Invalid("?")
    select = Select(per_prompt=2, filters={"clean": lambda r: "bad" not in r.text, "short": lambda r: len(r.text) < 3})
    kept, funnel = select([group], [outcomes])
    assert texts(kept) == ["a", "c"] and kept[0] is group[1]
    assert list(funnel.counts.items()) == [
        ("sampled", 8), ("judged", 7), ("right", 5), ("clean", 4), ("short", 4), ("distinct", 3), ("kept", 2),
    ]  # fmt: skip


def test_groups_are_kept_in_order_each_with_its_quota() -> None:
    groups = [[rollout(t, group=g) for t in "abc"] for g in range(3)]
    judged: list[list[Outcome]] = [[Score(1.0)] * 3, [Score(0.0)] * 3, [InfraError("x"), Score(0.2), Score(1.0)]]
    kept, funnel = Select(per_prompt=2)(groups, judged)
    assert [(r.group, r.text) for r in kept] == [(0, "a"), (0, "b"), (2, "c")]
    assert funnel.counts == {"sampled": 9, "judged": 8, "right": 4, "distinct": 4, "kept": 3}


def test_best_of_n_takes_the_highest_scores_first_come_on_ties() -> None:
    group = [rollout(t) for t in "abcd"]
    judged: list[Outcome] = [Score(0.3), Score(0.9), Score(0.3), Score(0.95)]
    kept = [texts(Select(k, at_least=0.0, best=True)([group], [judged])[0]) for k in (1, 2, 3)]
    assert kept == [["d"], ["d", "b"], ["d", "b", "a"]]


def test_duplicates_are_kept_when_asked_for_and_the_best_of_them_otherwise() -> None:
    group = [rollout("a"), rollout("a"), rollout("b")]
    judged: list[Outcome] = [Score(0.5), Score(0.9), Score(0.7)]
    kept, funnel = Select(3, at_least=0.0, dedupe=False)([group], [judged])
    assert texts(kept) == ["a", "a", "b"] and "distinct" not in funnel.counts
    kept, _ = Select(3, at_least=0.0, best=True)([group], [judged])
    assert kept[0] is group[1] and texts(kept) == ["a", "b"]


def test_equal_texts_of_different_prompts_are_not_duplicates() -> None:
    kept, _ = Select()([[rollout("a")], [rollout("a", group=1)]], [[Score(1.0)], [Score(1.0)]])
    assert [r.group for r in kept] == [0, 1]


def test_a_funnel_adds_up() -> None:
    funnel = Funnel()
    for n in (2, 3):
        funnel.add("sampled", n)
    assert funnel.counts == {"sampled": 5}


def test_groups_and_outcomes_must_match() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Select()([[rollout("a"), rollout("b")]], [[Score(1.0)]])
