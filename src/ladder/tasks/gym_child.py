"""The child's side of the reward `gym`: generates the data-set entry again and calls its `score_answer`. A function
with verl's signature."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any


def _make_compute_score() -> Callable[[str, Any, dict[str, Any]], float]:
    """Imports reasoning-gym while the worker loads, so that the import does not count against an answer's deadline."""
    import reasoning_gym

    @lru_cache(maxsize=256)
    def generate_entry(name: str, config: str, seed: int, index: int) -> tuple[Any, dict[str, Any]]:
        dataset = reasoning_gym.create_dataset(name, seed=seed, size=index + 1, **json.loads(config))
        return dataset, dataset[index]

    def compute_score(solution_str: str, ground_truth: Any, extra_info: dict[str, Any]) -> float:
        entry_key = extra_info["gym"]
        config = json.dumps(entry_key["config"], sort_keys=True)
        dataset, entry = generate_entry(entry_key["name"], config, entry_key["seed"], entry_key["index"])
        if str(entry["answer"]) != ground_truth:
            raise ValueError("the installed reasoning-gym generates another entry than the one of the task")
        return float(dataset.score_answer(solution_str, entry))

    return compute_score


compute_score = _make_compute_score()
