"""Evaluation: pass@k, confidence intervals, answers that cannot be judged, the share of well-formed thinking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from ladder.contract.rollouts import Completion, InfraError, Outcome, Rollout, Sampling, Score, Task
from ladder.evals import accuracy
from ladder.evals.accuracy import bootstrap, evaluate, pass_at_k, wilson
from ladder.rollout.scripted import ScriptedSampler


class Letters:
    """A tokenizer with one token per letter."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


def judge(group: Sequence[Rollout]) -> list[Outcome]:
    """A number is scored with its value; `x` cannot be judged."""
    return [InfraError("x") if r.text == "x" else Score(float(r.text), {"part": 1.0}) for r in group]


def evaluate_answers(answers: dict[str, list[Any]], *, samples: int = 1, **options: Any) -> Any:
    sampler = ScriptedSampler(answers, Letters())
    tasks = [Task(f"t{i}", prompt, "gold") for i, prompt in enumerate(answers)]
    reward, sampling = options.pop("reward", judge), Sampling(max_tokens=64)
    return evaluate(sampler, tasks, reward, Letters().encode, sampling, samples=samples, **options)


# ---------------------------------------------------------------- pass@k


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_answer() -> None:
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12), (n, c, k)


def test_pass_at_k_for_large_n() -> None:
    assert pass_at_k(2000, 1, 1000) == pytest.approx(0.5)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    for k in (0, 4, -1):
        with pytest.raises(ValueError, match="needs at least"):
            pass_at_k(3, 1, k)


def test_pass_at_k_of_an_evaluation() -> None:
    answers = {"a": ["1", "0", "0", "0"], "b": ["1", "1", "0", "0"], "c": ["0"] * 4}
    result = evaluate_answers(answers, samples=4, ks=(1, 2, 4))
    assert result.accuracy == pytest.approx(0.25)
    expected = {k: np.mean([pass_at_k(4, c, k) for c in (1, 2, 0)]) for k in (1, 2, 4)}
    assert result.pass_at == pytest.approx(expected) and expected[4] == pytest.approx(2 / 3)
    assert result.figures()["pass@4"] == 0.6667


def test_right_is_the_lowest_correct_score() -> None:
    answers = {"a": ["0.5", "0.4"]}
    assert evaluate_answers(answers, samples=2, ks=(1,)).pass_at == {1: 0}
    assert evaluate_answers(answers, samples=2, ks=(1,), right=0.5).pass_at == {1: 0.5}


# ---------------------------------------------------------------- intervals


def test_wilson_against_hand_worked_values() -> None:
    low, high = wilson(0.5, 10)
    assert (low, high) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    low, high = wilson(0.0, 20)
    assert low == 0 and high == pytest.approx(1.96**2 / (20 + 1.96**2))
    low, high = wilson(1.0, 20)
    assert high == 1 and low == pytest.approx(20 / (20 + 1.96**2))
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I


def test_wilson_has_95_percent_coverage() -> None:
    """About 95% of the intervals hold the true share, by the exact probabilities of all outcomes."""
    n = 100
    for p in (0.05, 0.3, 0.5, 0.9):
        covered = [c for c in range(n + 1) if wilson(c / n, n)[0] <= p <= wilson(c / n, n)[1]]
        assert 0.93 < sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in covered) < 0.97, p


def test_bootstrap_has_95_percent_coverage() -> None:
    r = np.random.default_rng(1)
    covered = []
    for trial in range(300):
        values = r.binomial(4, 0.6, 60) / 4
        low, high = bootstrap(values.tolist(), seed=trial, rounds=400)
        assert low <= values.mean() <= high
        covered.append(low <= 0.6 <= high)
    assert 0.90 < np.mean(covered) < 0.98


def test_bootstrap_width_is_that_of_the_normal_interval() -> None:
    values = [0.0, 1.0] * 200
    low, high = bootstrap(values, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(400), rel=0.1)
    assert bootstrap(values, seed=0) == (low, high) != bootstrap(values, seed=1)
    assert bootstrap([0.25] * 7, seed=0) == (0.25, 0.25)


def test_wilson_for_shares_and_bootstrap_for_the_rest() -> None:
    tasks = {str(i): ["1" if i % 4 else "0"] for i in range(8)}
    result = evaluate_answers(tasks)
    assert (result.low, result.high) == wilson(0.75, 8)
    graded = evaluate_answers({str(i): [v] for i, v in enumerate(["3", "-1", "2", "0"])})
    assert graded.accuracy == 1 and -1 <= graded.low < 1 < graded.high <= 3, "scores other than 0 and 1 are not shares"
    several = evaluate_answers({k: [v[0]] * 3 for k, v in tasks.items()}, samples=3)
    means = [0.0 if i % 4 == 0 else 1.0 for i in range(8)]
    assert (several.low, several.high) == bootstrap(means, 0)
    assert several.high - several.low > 0.4, "three equal answers to a task are one observation"


# ---------------------------------------------------------------- the rest


def test_unjudged_answers_are_counted_and_not_scored_0() -> None:
    result = evaluate_answers({"a": ["1", "x"], "b": ["x", "x"], "c": ["0", "1"]}, samples=2, ks=(1, 2))
    assert (result.unjudged, result.n) == (3, 3) and result.accuracy == pytest.approx(0.75)
    assert result.pass_at == {1: pytest.approx(0.75), 2: 1.0}, "only c has two judged answers"
    assert [r["reward"] for r in result.records] == [1, None, None, None, 0, 1]
    assert result.records[1]["why"] == "x" and result.records[0]["parts"] == {"part": 1.0}
    result = evaluate_answers({"a": ["1", "x"]}, samples=2, ks=(2,))
    assert result.pass_at == {} and "pass@2" not in result.figures()


def test_an_evaluation_without_a_judged_answer_raises() -> None:
    with pytest.raises(RewardFailure, match="none of 2 answers could be judged"):
        evaluate_answers({"a": ["x"], "b": ["x"]})


def completion(text: str, stop: Any) -> Completion:
    return Completion([7] * len(text), [-1.0] * len(text), [False] * len(text), stop, text)


def test_length_and_truncation() -> None:
    result = evaluate_answers({"a": [completion("1", "length")], "b": [completion("000", "eos")]})
    assert (result.length, result.truncated) == (2, 0.5)


def test_temperature_0_reaches_the_sampler() -> None:
    sampler = ScriptedSampler({"a": ["1"]}, Letters())
    result = evaluate(sampler, [Task("t", "a")], judge, Letters().encode, Sampling(max_tokens=4, temperature=0.0))
    assert sampler.asked[0].sampling.temperature == 0 and result.figures()["temperature"] == 0


def test_figures_of_the_tasks_world_are_added() -> None:
    result = evaluate_answers({"a": ["1"]}, stats=lambda rollouts: {"mixed": len(rollouts) / 3})
    figures = result.figures()
    assert figures["mixed"] == 0.3333 and figures["n"] == figures["samples"] == 1
    assert list(figures)[:6] == ["accuracy", "low", "high", "length", "truncated", "thinking"]


@pytest.mark.parametrize(
    ("prompt", "text", "stop", "share"),
    [
        ("q", "<thinking>a</thinking>b", "eos", 1),
        ("q", "<thinking>a</thinking>b", "length", 0),
        ("q", "<thinking>a</thinking>", "eos", 0),
        ("q", "<thinking></thinking>b", "eos", 0),
        ("q", "a</thinking>b", "eos", 0),
        ("q", "so <thinking>a</thinking>b", "eos", 0),
        ("q", "b", "eos", 0),
        ("q <thinking>", "a</thinking>b", "eos", 1),
        ("q <thinking>\n", "<thinking>a</thinking>b", "eos", 0),
    ],
)
def test_thinking_counts_well_formed_answers(prompt: str, text: str, stop: str, share: float) -> None:
    result = evaluate_answers({prompt: [completion(text, stop)]}, reward=lambda group: [Score(0.0) for _ in group])
    assert result.thinking == result.figures()["thinking"] == share


def test_thinking_is_a_share_and_uses_the_tags_of_the_sampling() -> None:
    answers = {"a": [completion("<thinking>a</thinking>b", "eos"), completion("b", "eos")]}
    assert evaluate_answers(answers, samples=2, reward=lambda g: [Score(0.0) for _ in g]).thinking == 0.5
    rollout = Rollout(Task("t", "q"), [], [], [], "[a]b", "eos")
    assert accuracy.thinks(rollout, Sampling(think_open="[", think_close="]"))
    assert not accuracy.thinks(rollout, Sampling())
