"""Rewards with a critic: columns worked by hand, answers that cannot be judged, and the adaptive KL coefficient."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import families as fam
from ladder.contract.rollouts import InfraError, Outcome, Rollout, Sampling, Score, Task
from ladder.contract.training import Sample, Unit
from ladder.credit.critic import CriticCredit
from ladder.credit.gae import AdaptiveKL
from ladder.rollout.collect import Collector
from ladder.rollout.scripted import Answer, ScriptedSampler
from ladder.signals.rewards import Rewards

TOKENIZER = fam.tokenizer()


def judge(group: Sequence[Rollout]) -> list[Outcome]:
    """Scores an answer by the number in its first word, minus 40; "w91" is an InfraError."""
    words = [r.text.split()[0] for r in group]
    return [InfraError("timed out") if w == "w91" else Score(float(w[1:]) - 40) for w in words]


def constant(value: float, name: str) -> Any:
    """A model whose output is `value` at every trained token."""

    def forward(units: Sequence[Unit]) -> list[dict[str, Tensor]]:
        return [{name: torch.where(u.mask, value, 0.0)} for u in units if isinstance(u, Sample)]

    return forward


def signal(answers: Sequence[Answer], reference: Any = None, **options: Any) -> Rewards:
    """One prompt per answer, with one rollout each. Scripted tokens have the log-probability -1."""
    tasks = [Task(f"t{i}", f"w{20 + i}") for i in range(len(answers))]
    sampler = ScriptedSampler({str(t.prompt): [a] for t, a in zip(tasks, answers, strict=True)}, TOKENIZER)
    collect = Collector(sampler, lambda p: TOKENIZER.encode(p), 1, Sampling(8), 0, "train")
    settings = {"critic": constant(0.5, "values"), "whitened": False} | options
    credit = CriticCredit(**settings)
    return Rewards(lambda step: tasks, collect, judge, credit, reference=reference, max_failed=1.0)


def step(s: Rewards) -> list[Sample]:
    return [u for u in next(s.batches()) if isinstance(u, Sample)]


def test_columns_by_hand() -> None:
    # two tokens (w42 and EOS), score 2, values 0.5 each, no KL, gamma 1, lam 0.5:
    # delta = (0 + 0.5 - 0.5, 2 + 0 - 0.5) = (0, 1.5), A = (0 + 0.5 * 1.5, 1.5), R = A + V
    (sample,) = step(signal(["w42"], lam=0.5))
    assert sample.cols["advantages"][sample.mask].tolist() == [0.75, 1.5]
    assert sample.cols["returns"][sample.mask].tolist() == [1.25, 2.0]
    assert sample.cols["old_values"][sample.mask].tolist() == [0.5, 0.5]
    assert not sample.cols["advantages"][~sample.mask].any()


def test_the_kl_penalty_is_subtracted_per_token() -> None:
    # logp -1, reference -3: k1 = 2 a token, times 0.1; lam 1: A_t = sum of later rewards - V
    s = signal(["w42"], lam=1.0, kl_coef=0.1, reference=constant(-3.0, "logps"))
    (sample,) = step(s)
    assert sample.cols["advantages"][sample.mask].tolist() == pytest.approx([2 - 0.4 - 0.5, 2 - 0.2 - 0.5])
    assert s.metrics()["kl/response"] == pytest.approx(4.0)
    assert sample.cols["ref_logps"][sample.mask].tolist() == [-3.0, -3.0]


def test_a_truncated_answer_gets_the_missing_eos_penalty() -> None:
    long = "w42 " * 12
    (truncated,) = step(signal([long.strip()], lam=1.0, missing_eos_penalty=1.0))
    assert truncated.cols["returns"][truncated.mask].tolist() == pytest.approx([1.0] * 8)


def test_answers_that_could_not_be_judged_are_left_out_and_counted() -> None:
    s = signal(["w42", "w91", "w41"])
    assert len(step(s)) == 2
    assert s.metrics()["infra_errors"] == pytest.approx(1 / 3)


def test_advantages_are_whitened_over_the_batch() -> None:
    samples = step(signal(["w42", "w41", "w47"], whitened=True))
    advantages = torch.cat([x.cols["advantages"][x.mask] for x in samples]).double().numpy()
    assert advantages.mean() == pytest.approx(0, abs=1e-6)
    assert np.std(advantages, ddof=1) == pytest.approx(1, abs=1e-4)


def test_the_adaptive_coefficient_follows_the_kl_and_is_restored() -> None:
    def new_signal() -> Rewards:
        return signal(["w42"], kl_coef=0.1, reference=constant(-3.0, "logps"), adaptive=AdaptiveKL(0.1, target=1.0))

    s = new_signal()
    step(s)
    # the KL of the answer is 4, far above the target: the error is clipped at 0.2
    assert s.metrics()["kl_coef"] == pytest.approx(0.1)
    assert s.metrics()["kl_coef/next"] == pytest.approx(0.1 * 1.02)
    restored = new_signal()
    restored.restore(json.loads(json.dumps(s.state())))
    step(restored)
    assert restored.metrics()["kl_coef"] == pytest.approx(0.1 * 1.02)
