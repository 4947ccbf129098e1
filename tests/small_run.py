"""Runs a tiny version of the r1 recipe in a few seconds, for tests of the pipeline and of its users."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import threads
from ladder.base.config import Document
from ladder.pipeline import recipe as recipes
from ladder.pipeline import run as running
from ladder.pipeline.recipe import Recipe
from ladder.tracking.console import Console

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("pretrain", "r1_zero", "harvest", "sft", "rl")


def kill_test() -> ModuleType:
    """The module benchmarks/kill_test.py. Its directory goes on sys.path: the processes it starts import it by name."""
    if str(ROOT / "benchmarks") not in sys.path:
        sys.path.append(str(ROOT / "benchmarks"))
    return importlib.import_module("kill_test")


TINY = [
    *kill_test().SMALL,
    f"threads={threads.NUMBER}",
    "engine.workers=1",
    "sampler.workers=1",
    "pretrain.data.web.documents=2000",
    "r1_zero.steps=2",
    "harvest.num_prompts=140",
    "harvest.keep=null",
    "sft.steps=6",
    "rl.steps=2",
    "rl.sampling.max_tokens=40",
    "eval.sampling.max_tokens=40",
    "eval.sets.easy.n=16",
    "eval.sets.hard.n=8",
    "eval.show=3",
]
"""Overrides that reduce kill_test's SMALL further."""


class Listening(Console):
    """A console that records its messages instead of printing them."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.said)


def load(*changes: str, recipe: str | Path | None = None) -> tuple[Recipe, Document]:
    """A recipe with overrides `changes`; without `recipe`, r1 with the TINY overrides."""
    if recipe is None:
        return recipes.load(str(ROOT / "recipes" / "r1.yaml"), [*TINY, *changes])
    return recipes.load(str(recipe), [f"threads={threads.NUMBER}", *changes])


def run(out: Path, *changes: str, recipe: str | Path | None = None, until: str | None = None) -> Listening:
    """Runs a recipe into `out`; returns the console with its messages."""
    console = Listening()
    threads.settle()
    loaded, document = load(*changes, recipe=recipe)
    running.run(loaded, document, out, console, until=until)
    return console


def plan(out: Path, *changes: str, recipe: str | Path | None = None) -> dict[str, str]:
    """{stage: status} of a planned run."""
    return {p.name: p.status for p in running.plan(*load(*changes, recipe=recipe), out)}


def keys(*changes: str, recipe: str | Path | None = None) -> dict[str, str]:
    """{stage: identity hash} of a planned run."""
    return {p.name: p.key for p in running.plan(*load(*changes, recipe=recipe), Path("nowhere"))}
