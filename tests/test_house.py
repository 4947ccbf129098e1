"""The house rules, held by reading the source: imports run down only, heavy packages have one owner, the engine
knows no technique's name, and nothing dangerous stands in the tree."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "ladder"
FILES = sorted(SRC.rglob("*.py"))

TENSORS = {"ops", "gradients", "batch", "segments", "forest", "sdpa", "head", "attention", "kernels", "llama"}
TENSORS |= {"flex", "flash"}
GROUND = TENSORS | {"types", "rng", "errors", "kl", "chat", "config", "log", "trackers", "data"}
# a room and what it may import beside itself and the ground floor
MAY_IMPORT = {
    "losses": set(),
    "rewards": set(),
    "envs": set(),
    "tasks": {"rewards"},
    "rollout": {"envs"},
    "engine": set(),
    "signals": {"rollout", "rewards", "tasks"},
    "train": {"engine", "signals"},
    "evals": {"rollout", "rewards", "tasks"},
    "diagnose": set(),
    "report": {"evals", "diagnose"},
}
NO_TORCH = {"rewards", "envs", "tasks"}
OWNERS = {
    "datasets": {"data"},
    "pyarrow": {"data"},
    "math_verify": {"rewards"},
    "reasoning_gym": {"tasks"},
    "gguf": {"engine"},
    "peft": {"engine"},
    "tensorboard": {"trackers"},
    "wandb": {"trackers"},
    "mlflow": {"trackers"},
    "trackio": {"trackers"},
    "vllm": {"rollout"},
    "triton": {"kernels"},
    "ray": {"launch"},
    "typer": {"cli"},
    "matplotlib": {"report", "lab"},
    "jinja2": {"report", "chat"},
}
TECHNIQUES = re.compile(
    r"\b(sft|dpo|ipo|kto|simpo|orpo|grpo|dapo|gspo|cispo|rloo|ppo|reinforce|rlhf|rlaif|raft|r1|pretrain|pretraining|"
    r"distill\w*|harvest|critic|reward\w*|advantage\w*)\b",
    re.IGNORECASE,
)


def room(path: Path) -> str:
    """The room a file belongs to: its package under ladder, or its own name on the ground floor."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, at the top level) of every import in a file; those for type checking only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(ast.walk(node))
    top = set(tree.body)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, node in top
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            assert node.module
            yield node.module, node.lineno, node in top
            if node.module == "ladder":
                for alias in node.names:
                    yield f"ladder.{alias.name}", node.lineno, node in top


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_run_down_only(path: Path) -> None:
    here = room(path)
    for module, line, _ in imports(path):
        if not module.startswith("ladder."):
            continue
        there = module.split(".")[1]
        if there == here or (there in GROUND and here not in GROUND):
            continue
        if here in GROUND:
            assert there in GROUND, f"{path}:{line}: the ground floor imports {module}"
        elif here in MAY_IMPORT:
            assert there in MAY_IMPORT[here], f"{path}:{line}: {here} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_heavy_packages_have_one_owner_and_wait(path: Path) -> None:
    here = room(path)
    for module, line, top in imports(path):
        package = module.split(".")[0]
        if package in OWNERS:
            assert here in OWNERS[package], f"{path}:{line}: {package} belongs to {OWNERS[package]}"
            # what is written in Triton imports it, and is itself imported where it is used (below)
            optional = package not in {"peft", "typer", "matplotlib", "jinja2", "triton"}
            assert not (optional and top), f"{path}:{line}: import {package} where it is used"
        if module.startswith("ladder.kernels.tiled"):
            assert path.name.startswith("tiled"), f"{path}:{line}: between.tiled() finds them, where there is Triton"
        if here in NO_TORCH:
            assert package not in {"torch", "transformers"}, f"{path}:{line}: {here} imports {package}"


def test_the_engine_knows_no_techniques_name() -> None:
    blind = [p for p in FILES if room(p) in TENSORS | {"engine", "train"}]
    assert len(blind) > 6
    for path in blind:
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if path.name == "segments.py":
                text = text.replace("reinforce", "")
            found = TECHNIQUES.search(text)
            assert not found, f"{path}:{number}: the engine names {found.group()!r}" if found else ""


DANGER = {
    r"^\s*(import|from) (pickle|dill|joblib|marshal)\b": "no pickle",
    r"\btorch\.(load|save)\(": "safetensors only",
    r"(?<![\w.])(?<!def )eval\(": "no eval",
    r"(?<![\w.])exec\(": "no exec",
    r"trust_remote_code\s*=\s*True": "never by default",
    r"shell\s*=\s*True": "no shell",
    r"0\.0\.0\.0": "loopback only",
    r"^\s*except\s*:": "no bare except",
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_nothing_dangerous(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for pattern, why in DANGER.items():
            assert not re.search(pattern, line), f"{path}:{number}: {why}: {line.strip()}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_a_file_opens_with_its_purpose(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name != "__init__.py" or text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it is"


def test_importing_a_loss_stays_light() -> None:
    import subprocess
    import sys

    heavy = ("transformers", "peft", "matplotlib", "typer")
    code = f"import sys, ladder.losses; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_test_imports_a_peer() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for module, line, _ in imports(path):
            assert module.split(".")[0] not in {"trl", "verl", "openrlhf"}, f"{path}:{line}"
