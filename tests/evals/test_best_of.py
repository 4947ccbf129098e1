"""Best-of-n against hand-worked values and the enumeration of all subsets, and as a stage."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

import small_run
from ladder.base.errors import UserError
from ladder.base.files import read_json
from ladder.contract.rollouts import Invalid, Score
from ladder.evals.best_of import best_of, best_of_kl
from ladder.pipeline.kinds.best_of import sizes, whole


def test_three_answers_by_hand() -> None:
    """Proxy rewards 3 > 2 > 1, gold rewards 0, 6, 9. Of two: {3,2} and {3,1} choose 0, {2,1} chooses 6; mean 2."""
    proxy, gold = np.array([1.0, 3.0, 2.0]), np.array([9.0, 0.0, 6.0])
    assert best_of(proxy, gold, 1) == pytest.approx(5)
    assert best_of(proxy, gold, 2) == pytest.approx(2)
    assert best_of(proxy, gold, 3) == 0


def test_tied_answers_count_with_their_mean_gold_reward() -> None:
    assert best_of(np.ones(4), np.array([0.0, 0.0, 1.0, 1.0]), 3) == pytest.approx(0.5)


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_best_of_is_the_mean_over_all_subsets(n: int) -> None:
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=7), rng.normal(size=7)
    chosen = [gold[max(subset, key=lambda i: proxy[i])] for subset in itertools.combinations(range(7), n)]
    assert best_of(proxy, gold, n) == pytest.approx(np.mean(chosen))


def test_n_above_the_number_of_answers_raises() -> None:
    with pytest.raises(ValueError, match="best of 3 needs at least 3"):
        best_of(np.zeros(2), np.zeros(2), 3)


def test_kl_by_numerical_integration() -> None:
    """The quantile u of the best of n has the density n u^(n-1), so KL = log n - (n-1)/n."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 8):
        density = n * u ** (n - 1)
        assert best_of_kl(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-4)
    assert best_of_kl(1) == 0 and best_of_kl(16) == pytest.approx(math.log(16) - 15 / 16)


def test_sizes_and_prompts_with_an_unjudged_answer() -> None:
    assert sizes(16) == [1, 2, 4, 8, 16] and sizes(12) == [1, 2, 4, 8, 12]
    assert whole({"reward": [Score(1.0), Score(2.0)], "gold": [Score(0.0), Invalid("x")]}) is None


def test_best_of_stage(tmp_path: Path) -> None:
    stage = {"kind": "best_of", "from": "pretrain", "num_prompts": 150, "group_size": 4, "watch": {"right": "chain"}}
    stages = {
        "pretrain": {"kind": "pretrain", "data": {"web": {"documents": 400}}, "batch": 600, "by": "tokens"},
        "best": stage | {"reward": "chain_gold", "sampling": {"max_tokens": 12}},
    }
    recipe = {"name": "b", "threads": 1, "model": {"source": "preset:chain"}, "task": "chain", "stages": stages}
    path = tmp_path / "b.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    small_run.run(tmp_path / "out", recipe=path)
    curve = read_json(tmp_path / "out" / "best" / "summary.json")["curve"]
    assert [p["n"] for p in curve] == [1, 2, 4] and set(curve[0]) == {"n", "kl", "reward", "right"}
    assert curve[0]["reward"] < curve[1]["reward"] < curve[2]["reward"], "the stage chooses by the reward"
    assert all(p["right"] <= p["reward"] for p in curve), "chain_gold pays for correctness and more"
    stages["best"]["sampling"]["temperature"] = 0
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    with pytest.raises(UserError, match="all the same"):
        small_run.run(tmp_path / "out2", recipe=path)
