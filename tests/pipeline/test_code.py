"""Which sources make a stage another one: those that its kind reaches, and no others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ladder.pipeline import code

RL, SFT = "ladder.pipeline.kinds.rl", "ladder.pipeline.kinds.supervised"


def names(module: str, source: Path = code.SOURCE) -> set[str]:
    return {path.relative_to(source).as_posix() for path in code.reached((module, *code.ALWAYS), source)}


def test_the_files_that_a_stage_imports() -> None:
    """Through other modules, inside functions, and by a module's name in a string; C files too."""
    rl = names(RL)
    assert {"credit/group.py", "losses/policy.py", "engine/engine.py", "decoding/scheduler.py", "pipeline/run.py"} <= rl
    assert {"rewards/worker.py", "rewards/symbolic_child.py", "tasks/gym_child.py", "tasks/chain/words.py"} <= rl
    assert {"kernels/decode.c", "kernels/gemm.h", "kernels/triton_layers.py", "base/__init__.py"} <= rl
    assert not [name for name in rl if name.startswith(("report/", "lab/", "commands/", "tracking/", "diagnose/"))]
    assert "pipeline/kinds/ppo.py" not in rl and "credit/critic.py" not in rl
    assert "signals/unpaired.py" not in names(SFT)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return Path(shutil.copytree(code.SOURCE, tmp_path / "ladder"))


def test_a_file_that_nothing_imports_is_not_part_of_the_identity(tree: Path) -> None:
    before = names(RL, tree)
    (tree / "labels").mkdir()
    (tree / "labels" / "store.py").write_text("import ladder.credit.group\n")
    (tree / "losses" / "mine.py").write_text("")
    assert names(RL, tree) == before
    with (tree / "signals" / "rewards.py").open("a") as f:
        f.write("\n\ndef late():\n    from ladder.labels import store\n\n    return store\n")
    assert names(RL, tree) - before == {"labels/store.py"}
