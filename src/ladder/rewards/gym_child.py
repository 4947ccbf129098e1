"""The child's side of `gym.Gym`: makes the entry again and asks the task's own `score_answer`, in verl's signature."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import reasoning_gym


def compute_score(solution_str: str, ground_truth: Any, extra_info: dict[str, Any]) -> float:
    """The score of an answer to the entry that `extra_info["gym"]` names."""
    where = extra_info["gym"]
    dataset, entry = _entry(where["name"], json.dumps(where["config"], sort_keys=True), where["seed"], where["index"])
    if str(entry["answer"]) != ground_truth:
        raise ValueError("this version of reasoning-gym makes another entry than the one the task was made from")
    return float(dataset.score_answer(solution_str, entry))


@lru_cache(maxsize=256)
def _entry(name: str, config: str, seed: int, index: int) -> tuple[Any, dict[str, Any]]:
    dataset = reasoning_gym.create_dataset(name, seed=seed, size=index + 1, **json.loads(config))
    return dataset, dataset[index]
