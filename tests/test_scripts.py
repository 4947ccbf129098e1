"""The examples run: what they show is what the package does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from ladder.models.load import load_model, save_model, wrap_tokenizer
from ladder.tasks.chain import words

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base of random weights."""
    directory = tmp_path_factory.mktemp("base")
    tokenizer = wrap_tokenizer(words.tokenizer(), bos="<s>", eos="</s>", pad="<pad>")
    save_model(load_model("preset:chain", tokenizer=tokenizer, config={"hidden_size": 32}), directory)
    return str(directory)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_grpo_in_a_dozen_lines(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("grpo").main(model, str(tmp_path / "out"), 2)
    assert "step 2: reward" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_grpo_with_nothing_hidden(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    flat = script("grpo_flat")
    flat.P, flat.G, flat.MAX_TOKENS = 2, 4, 8
    flat.main(model, 2)
    assert "step 2: reward" in capsys.readouterr().out


def test_sft_on_a_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "3 a +1 b +2 =", "completion": " a 3 +1 4 b 4 +2 6 # 6"}
    rows.write_text("".join(json.dumps(row) + "\n" for _ in range(20)), encoding="utf-8")
    script("sft").main(model, str(rows), str(tmp_path / "out"))
    said = capsys.readouterr().out.strip().splitlines()
    first, last = (float(line.rsplit(" ", 1)[1]) for line in (said[-3], said[-1]))
    assert last < first


def test_the_flat_loop_knows_the_world() -> None:
    flat = script("grpo_flat")
    assert flat.reward("a 3 +1 4 # 4", "4") == 1.0
    assert flat.reward("# 4 # 4", "4") == 0.0
    assert flat.reward("# 4 a", "4") == 0.0
