"""The house rules, held by reading the source: imports run down only, also indirectly; heavy packages have one owner;
the engine knows no technique's name; nothing dangerous stands in the tree."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "ladder"
FILES = sorted(SRC.rglob("*.py"))
MODULES = {".".join(("ladder", *p.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__"): p for p in FILES}

# A package (or a file of the top level) and the packages that it may import beside itself. What a package imports must
# stand above it in this table, so that the order of the lines is the order of the storeys.
MAY_IMPORT: dict[str, set[str]] = {
    "contract": set(),
    "base": set(),
    "tracking": {"base"},
    "diagnose": {"base", "contract"},
    "data": {"base", "contract"},
    "rewards": {"base", "contract"},
    "tasks": {"base", "contract", "data", "rewards"},
    "losses": {"base", "contract"},
    "packing": {"base", "contract"},
    "kernels": {"packing"},
    "attention": {"packing", "kernels"},
    "models": {"base", "contract", "data", "packing", "kernels", "attention"},
    "engine": {"base", "contract", "packing", "attention", "models"},
    "decoding": {"base", "contract", "packing", "kernels", "attention", "models"},
    "rollout": {"base", "contract", "data", "decoding"},
    "envs": {"base", "contract"},
    "credit": {"base", "contract", "losses"},
    "signals": {"base", "contract", "data", "losses", "packing", "rewards", "tasks", "credit", "rollout"},
    "evals": {"base", "contract", "rewards", "tasks", "rollout"},
    "train": {"base", "contract", "engine"},
    "report": {"base", "diagnose", "evals"},
}
COMPOSE = ("pipeline", "lab", "commands", "cli")
"""What puts everything together: each may import all of the above, and those before it."""

ANY = set(MAY_IMPORT)
for number, package_ in enumerate(COMPOSE):
    MAY_IMPORT[package_] = ANY | set(COMPOSE[:number])

NO_TORCH = {"rewards", "envs", "tasks"}
NO_TORCH_FILES = {"ladder.contract.rollouts"}
ENGINE = {"packing", "kernels", "attention", "models", "engine", "train"}
"""Packages that name no technique and reach no loss."""

OWNERS = {
    "datasets": {"data"},
    "pyarrow": {"data"},
    "math_verify": {"rewards"},
    "reasoning_gym": {"tasks"},
    "gguf": {"models"},
    "peft": {"models"},
    "tensorboard": {"tracking"},
    "wandb": {"tracking"},
    "mlflow": {"tracking"},
    "trackio": {"tracking"},
    "vllm": {"rollout"},
    "triton": {"kernels"},
    "ray": {"launch"},
    "fastapi": {"serve"},
    "sqlalchemy": {"labels"},
    "openai": {"rewards"},
    "typer": {"cli"},
    "matplotlib": {"report", "lab"},
    "jinja2": {"report", "data"},
}
AT_THE_TOP = {"peft", "typer", "matplotlib", "jinja2", "triton"}
"""Packages that are no extra, and Triton, whose files are themselves imported only where there is a GPU."""

TECHNIQUES = re.compile(
    r"\b(sft|dpo|ipo|kto|simpo|orpo|grpo|dapo|gspo|cispo|rloo|ppo|reinforce|rlhf|rlaif|raft|r1|pretrain|pretraining|"
    r"distill\w*|harvest|critic|reward\w*|advantage\w*)\b",
    re.IGNORECASE,
)


def package(path: Path) -> str:
    """The package under `ladder` that a file belongs to, or its own name on the top level."""
    return path.relative_to(SRC).with_suffix("").parts[0]


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
            for alias in node.names:
                if f"{node.module}.{alias.name}" in MODULES:
                    yield f"{node.module}.{alias.name}", node.lineno, node in top


@cache
def reached(module: str) -> frozenset[str]:
    """Every module that importing one imports, its packages' `__init__` and third parties included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            waiting += [m for m, _, top in imports(MODULES[name]) if top]
            waiting.append(name.rpartition(".")[0]) if "." in name else None
    return frozenset(seen)


def test_the_table_holds_every_package_and_runs_down() -> None:
    assert {package(p) for p in FILES} - {"__init__"} <= set(MAY_IMPORT)
    above: set[str] = set()
    for name, allowed in MAY_IMPORT.items():
        assert allowed <= above, f"{name} may import {allowed - above}, which stands below it"
        above.add(name)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_run_down_only(path: Path) -> None:
    here = package(path)
    for module, line, _ in imports(path):
        if module.startswith("ladder."):
            there = module.split(".")[1]
            assert there == here or there in MAY_IMPORT[here], f"{path}:{line}: {here} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_heavy_packages_have_one_owner_and_wait(path: Path) -> None:
    here = package(path)
    for module, line, top in imports(path):
        name = module.split(".")[0]
        if name in OWNERS:
            assert here in OWNERS[name], f"{path}:{line}: {name} belongs to {OWNERS[name]}"
            assert not (name not in AT_THE_TOP and top), f"{path}:{line}: import {name} where it is used"
        if module.startswith("ladder.kernels.triton"):
            assert path.name.startswith("triton"), f"{path}:{line}: dispatch finds them, where there is Triton"


def test_rewards_environments_and_tasks_import_no_torch_also_indirectly() -> None:
    light = [m for m, p in MODULES.items() if package(p) in NO_TORCH or m in NO_TORCH_FILES]
    assert len(light) > 15
    for module in light:
        heavy = sorted(m for m in reached(module) if m.split(".")[0] in {"torch", "transformers"})
        assert not heavy, f"{module} imports {heavy[0]}, by way of another module"


def test_the_engine_reaches_no_loss_and_no_signal() -> None:
    for module in (m for m, p in MODULES.items() if package(p) in ENGINE):
        found = [m for m in reached(module) if m.startswith(("ladder.losses", "ladder.signals", "ladder.credit"))]
        assert not found, f"{module} imports {found}"


def test_the_engine_knows_no_techniques_name() -> None:
    blind = [p for p in FILES if package(p) in ENGINE] + [SRC / "contract" / "batch.py"]
    assert len(blind) > 6
    for path in blind:
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if path.name == "packed.py":
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
    heavy = {"transformers", "peft", "matplotlib", "typer"}
    assert not heavy & {m.split(".")[0] for m in reached("ladder.losses")}


def test_no_test_imports_a_peer_nor_another_test() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for module, line, _ in imports(path):
            assert module.split(".")[0] not in {"trl", "verl", "openrlhf"}, f"{path}:{line}"
            assert not module.startswith("test_"), f"{path}:{line}: what two tests share stands in a file of its own"


def test_tests_are_sorted_as_the_source_is() -> None:
    for directory in {p.parent for p in (ROOT / "tests").rglob("test_*.py")} - {ROOT / "tests"}:
        assert (SRC / directory.relative_to(ROOT / "tests")).is_dir(), f"{directory} tests no package"
