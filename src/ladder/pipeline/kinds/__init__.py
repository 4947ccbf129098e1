"""The kinds of stages, by the name a recipe gives them. A new kind is a class with `run`, and a line here."""

from __future__ import annotations

from typing import Any

from ladder.base.config import Document, check, near
from ladder.pipeline.kinds.annotate import Annotate
from ladder.pipeline.kinds.best_of import BestOf
from ladder.pipeline.kinds.evaluate import Evaluate
from ladder.pipeline.kinds.ppo import PPO
from ladder.pipeline.kinds.preferences import PreferenceStage, RewardModel
from ladder.pipeline.kinds.rejection_sampling import RejectionSampling
from ladder.pipeline.kinds.rl import RL
from ladder.pipeline.kinds.supervised import SFT, Pretrain
from ladder.pipeline.stage import StageConfig

KINDS: dict[str, type[StageConfig]] = {
    "evaluate": Evaluate,
    "pretrain": Pretrain,
    "sft": SFT,
    "rejection_sampling": RejectionSampling,
    "rl": RL,
    "ppo": PPO,
    "annotate": Annotate,
    "best_of": BestOf,
    "preference": PreferenceStage,
    "reward_model": RewardModel,
}

RENAMED = {"measure": "evaluate", "harvest": "rejection_sampling", "prefer": "preference"}
"""Kinds that had another name before version 0.1.0."""


def build(name: str, spec: dict[str, Any], document: Document) -> StageConfig:
    """A stage's configuration, checked. Raises UserError at its line."""
    at = ["stages", name]
    if not isinstance(spec, dict):
        raise document.error("a stage is a group of fields", at)
    kind = spec.get("kind")
    if kind in RENAMED:
        raise document.error(f"the kind {kind!r} is called {RENAMED[kind]!r} now", [*at, "kind"], "write the new name")
    if kind not in KINDS:
        raise document.error(f"no stage is of kind {kind!r}{near(str(kind), list(KINDS))}", [*at, "kind"])
    return check(KINDS[kind], document, spec, at)
