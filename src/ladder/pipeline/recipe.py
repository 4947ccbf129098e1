"""The schema of a recipe. Each kind of stage has its own schema (`kinds/`); shared settings are at its top.

    seed: 0
    model: {source: "preset:chain"}
    task: {kind: chain, steps: [3, 6]}
    reward: chain
    stages:
      pretrain: {kind: pretrain, ...}
      r1_zero: {kind: rl, from: pretrain, ...}
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ladder.base.config import Config, Document, check, near, read
from ladder.base.errors import UserError
from ladder.models.lora import LoRA

Spec = str | dict[str, Any] | list[Any]


class ModelSpec(Config):
    """source: hub id, directory, GGUF file or preset:NAME. config: fields of a preset to override. lora: train an
    adapter instead of all weights. trust_remote_code: execute code that comes with a model (read it first)."""

    source: str
    config: dict[str, Any] = Field(default_factory=dict)
    dtype: str = "float32"
    device: str = "cpu"
    revision: str | None = None
    lora: LoRA | None = None
    trust_remote_code: bool = False


class EngineSpec(Config):
    """budget: most tokens of one micro-batch (default: 1,280 on a CPU, 8,192 on a GPU). workers: CPU threads that run
    micro-batches in parallel (for tiny models). matmul: torch's float32 matmul precision: highest computes in float32;
    high and medium in TF32 or bfloat16 where the processor has them, several times faster, with three decimal
    digits."""

    budget: int | None = Field(default=None, ge=1)
    workers: int = Field(default=1, ge=1)
    matmul: Literal["highest", "high", "medium"] = "highest"
    share_prefix: bool = True
    checkpointing: bool = False


class NativeSpec(Config):
    """The native sampler. slots: sequences decoded in one batch. cache_tokens: bounds slots x length. workers: CPU
    threads (for tiny models). dtype: of the weights and products (bfloat16 halves the memory traffic; a loss with a
    ratio then needs importance_cap)."""

    kind: Literal["native"] = "native"
    slots: int = Field(default=256, ge=1)
    cache_tokens: int = Field(default=1 << 20, ge=1)
    workers: int = Field(default=1, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"


class VLLMSpec(Config):
    """vLLM samples the rollouts that are trained on; evaluations always use the native sampler. slots: sequences
    decoded in one batch. cache_gb: size of the key-value cache. block: tokens of one cache block. compiled: use
    torch.compile (takes minutes at every start). tolerance: largest error of a canary's log-probability."""

    kind: Literal["vllm"]
    slots: int = Field(default=256, ge=1)
    cache_gb: int = Field(default=4, ge=1)
    block: int = Field(default=32, ge=1)
    compiled: bool = False
    tolerance: float = Field(default=1e-3, gt=0)


class SamplingSpec(Config):
    """The fields of `contract.rollouts.Sampling`."""

    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0, lt=1)
    stop: tuple[str, ...] = ()
    think_open: str = "<thinking>"
    think_close: str = "</thinking>"
    think_budget: int = Field(default=0, ge=0)


class EvalSet(Config):
    """task: the task source. n: number of tasks of the split (None: all). reward: None takes the recipe's; a set
    that is judged by a stage's reward model is evaluated from that stage on. sampling: None takes that of `eval`."""

    task: Spec
    split: str = "test"
    n: int | None = Field(default=None, ge=1)
    reward: Spec | None = None
    sampling: SamplingSpec | None = None


class EvalSpec(Config):
    """The evaluation after every stage: each set at each temperature. samples: answers to each problem at temperature
    > 0. pass_at: k for pass@k. show: number of problems whose answers the report shows."""

    sets: dict[str, EvalSet]
    temperatures: tuple[float, ...] = (1.0, 0.0)
    samples: int = Field(default=1, ge=1)
    pass_at: tuple[int, ...] = ()
    sampling: SamplingSpec = SamplingSpec()
    show: int = Field(default=6, ge=0)


class Recipe(Config):
    """about: what to expect. threads: torch threads (0: one per core). chat_template: put text prompts into a user's
    turn of the model's chat template. save_every: seconds between checkpoints. keep_rollouts: number of answers per
    step of reinforcement learning that are written to rollouts.jsonl. trackers: sinks of the metrics besides
    metrics.jsonl."""

    renamed: ClassVar[Mapping[str, str]] = {"as_turn": "chat_template"}
    name: str = ""
    about: str = ""
    seed: int = 0
    threads: int = Field(default=0, ge=0)
    model: ModelSpec
    engine: EngineSpec = EngineSpec()
    sampler: NativeSpec | VLLMSpec = NativeSpec()
    task: Spec | None = None
    reward: Spec | None = None
    chat_template: bool = False
    eval: EvalSpec | None = None
    save_every: float = Field(default=30.0, ge=0)
    keep_rollouts: int = Field(default=16, ge=0)
    trackers: tuple[str, ...] = ()
    stages: dict[str, dict[str, Any]]

    @field_validator("stages")
    @classmethod
    def _check_names(cls, stages: dict[str, Any]) -> dict[str, Any]:
        if not stages:
            raise ValueError("a recipe needs at least one stage")
        for name in stages:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"{name!r} is not a valid stage name (lower-case letters, digits and _)")
        return stages

    def first(self, until: str | None) -> int:
        """The number of stages up to and including `until`; of all for None. Raises UserError if there is no such
        stage."""
        names = list(self.stages)
        if until is None:
            return len(names)
        if until not in names:
            raise UserError(f"there is no stage {until!r}{near(until, names)}", field="--until")
        return names.index(until) + 1


def find(name: str) -> Path:
    """The path of a recipe: given as a path, or as a name that is searched in ./recipes and the packaged recipes.
    Raises UserError."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = available()
    if name not in known:
        raise UserError(f"no recipe is called {name!r}{near(name, list(known))}", hint="ladder recipes lists them")
    return known[name]


def available() -> dict[str, Path]:
    """Every recipe by name; ./recipes takes precedence over the packaged ones."""
    here = Path("recipes")
    source = Path(__file__).resolve().parents[3] / "recipes"
    installed = Path(sys.prefix) / "share" / "signal-ladder" / "recipes"
    paths: dict[str, Path] = {}
    for root in (here, source, installed):
        for path in sorted(root.rglob("*.yaml")):
            paths.setdefault(str(path.relative_to(root).with_suffix("")), path)
    return paths


def load(name: str, overrides: Sequence[str] = (), without: Sequence[str] = ()) -> tuple[Recipe, Document]:
    """Loads a recipe, and the document it was read from (for errors in stages). overrides: `field=value`. without:
    stages that are left out. Raises UserError."""
    path = find(name)
    document = read(path, overrides, list(Recipe.model_fields))
    for stage in without:
        leave_out(document, stage)
    recipe = check(Recipe, document, document.data)
    return recipe.model_copy(update={"name": recipe.name or path.stem}), document


def leave_out(document: Document, name: str) -> None:
    """Removes a stage from the recipe. Stages that start from its model then start from its own parent's (or the
    recipe's model), so that a recipe with pretraining can begin with the user's model instead. Raises UserError."""
    stages = document.data.get("stages")
    if not isinstance(stages, dict) or name not in stages:
        raise UserError(f"there is no stage {name!r}{near(name, list(stages or {}))}", field="--without")
    removed = stages.pop(name)
    parent = removed.get("from") if isinstance(removed, dict) else None
    for stage in stages.values():
        if isinstance(stage, dict) and stage.get("from") == name:
            stage.pop("from")
            stage |= {"from": parent} if parent is not None else {}
