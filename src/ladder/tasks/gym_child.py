"""The child's side of the reward `gym`: makes an entry again, asks its own `score_answer`. In verl's signature."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any


def _judge() -> Callable[[str, Any, dict[str, Any]], float]:
    """Imports reasoning-gym now, while the worker loads, so that no answer pays for it out of its deadline."""
    import reasoning_gym

    @lru_cache(maxsize=256)
    def entry_of(name: str, config: str, seed: int, index: int) -> tuple[Any, dict[str, Any]]:
        dataset = reasoning_gym.create_dataset(name, seed=seed, size=index + 1, **json.loads(config))
        return dataset, dataset[index]

    def compute_score(solution_str: str, ground_truth: Any, extra_info: dict[str, Any]) -> float:
        where = extra_info["gym"]
        config = json.dumps(where["config"], sort_keys=True)
        dataset, entry = entry_of(where["name"], config, where["seed"], where["index"])
        if str(entry["answer"]) != ground_truth:
            raise ValueError("this reasoning-gym makes another entry than the one the task was made from")
        return float(dataset.score_answer(solution_str, entry))

    return compute_score


compute_score = _judge()
