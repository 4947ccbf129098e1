"""The command line: output, exit codes and error messages of every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import small_run
import threads
from ladder import cli
from ladder.base.files import read_json
from ladder.models.load import load_model

Ladder = Callable[..., tuple[int, str, str]]
R1 = str(small_run.ROOT / "recipes" / "r1.yaml")


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ladder:
    """Runs the command in this process: (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    threads.settle()

    def call(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["ladder", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as err:
            code = err.code if isinstance(err.code, int) else 0 if err.code is None else 1
        out, err = capsys.readouterr()
        return code, out, err

    return call


def refused(result: tuple[int, str, str]) -> str:
    """The error message of a command that must fail with exit code 2 and one paragraph."""
    code, _, err = result
    assert code == 2, err
    assert err.startswith("ladder: ") and err.count("\n") == 1 and "Traceback" not in err
    return err.removeprefix("ladder: ").strip()


# ---------------------------------------------------------------- in a separate process


def test_help_does_not_load_torch() -> None:
    code = "import sys; from ladder.cli import main; sys.argv = ['ladder', '--help']\n"
    code += "try: main()\nexcept SystemExit as e: "
    code += "print(e.code, [m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("0 []")
    for command in ("run", "eval", "sample", "chat", "inspect", "lineage", "report", "export", "replay", "recipes"):
        assert f" {command} " in done.stdout


def test_an_error_in_a_separate_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ladder.cli", "run", "no.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ladder: no.yaml: there is no such file\n" and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- runs


def test_recipes(ladder: Ladder) -> None:
    code, out, _ = ladder("recipes")
    assert code == 0 and "gsm8k_smollm2" in out and "DeepSeek-R1 on a laptop" in out


def test_plan(ladder: Ladder, small: Path, tmp_path: Path) -> None:
    code, out, _ = ladder("run", R1, *small_run.TINY, "--out", tmp_path / "new", "--plan")
    assert code == 0 and out.count("to do") == 5 and not (tmp_path / "new").exists()
    code, out, _ = ladder("run", R1, *small_run.TINY, "rl.steps=9", "--out", small, "--plan")
    assert code == 0 and out.count("done") == 4 and out.count("to do again") == 1
    code, out, _ = ladder("run", R1, *small_run.TINY, "--seed", 1, "--out", small, "--plan")
    assert out.count("to do again") == 5


def test_run_ends_with_a_table_and_a_report(ladder: Ladder, copy: Path) -> None:
    code, out, err = ladder("run", R1, *small_run.TINY, "rl.steps=3", "--out", copy)
    assert (code, err) == (0, "")
    assert out.count("done before") == 4 and "rl 3/3" in out and "greedy" in out
    assert str(copy / "report.html") in out.replace("\n", "") and (copy / "report.html").stat().st_size > 10_000
    code, out, err = ladder("run", R1, *small_run.TINY, "rl.steps=3", "--out", copy, "--quiet")
    assert (code, out, err) == (0, "", "")


def test_until_and_the_default_directory(ladder: Ladder, tmp_path: Path) -> None:
    code, _, _ = ladder("run", R1, *small_run.TINY, "name=mine", "eval=null", "--until", "pretrain", "-q")
    assert code == 0 and (tmp_path / "runs" / "mine" / "pretrain" / "model").is_dir()
    assert not (tmp_path / "runs" / "mine" / "r1_zero").exists()
    assert "there is no stage 'rll', did you mean 'rl'?" in refused(ladder("run", R1, "--until", "rll"))


def test_an_interrupted_run(ladder: Ladder, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ladder.pipeline.stage import Context, Interrupted

    def stop(*_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(Context, "check_stop", stop)
    code, _, err = ladder("run", R1, *small_run.TINY, "rl.steps=3", "--out", copy)
    assert code == 130 and err == "ladder: stopped; the same command resumes from here\n"


def test_lineage(ladder: Ladder, copy: Path) -> None:
    code, out, _ = ladder("lineage", copy)
    assert code == 0 and out.count("verified") == 5 and "from stage harvest" in out
    (copy / "harvest" / "data.jsonl").write_text("")
    assert "CHANGED since it was written" in ladder("lineage", copy)[1]
    (copy / "harvest" / "data.jsonl").unlink()
    assert "MISSING" in ladder("lineage", copy)[1]
    assert "verified" not in ladder("lineage", "--no-check", copy)[1]


def test_replay(ladder: Ladder, copy: Path) -> None:
    pytest.importorskip("tensorboard")
    code, out, _ = ladder("replay", copy, "tensorboard")
    assert code == 0 and "rl: 2 steps to tensorboard" in out and "harvest: 0 steps" in out
    assert len([*(copy / "rl" / "tensorboard").iterdir()]) == 1


# ---------------------------------------------------------------- models


def test_eval(ladder: Ladder, small: Path, tmp_path: Path) -> None:
    task = "{chain: {steps: [3, 6]}}"
    code, out, err = ladder(
        *("eval", "-m", small / "rl", "--task", task, "--reward", "chain", "--n", 4, "--samples", 4),
        *("--pass-at", "1,4", "--max-tokens", 12, "--out", tmp_path / "eval.json"),
    )
    assert (code, err) == (0, "") and "% right" in out and "pass@4" in out and "thinking 0" in out
    (result,) = read_json(tmp_path / "eval.json")["results"]
    assert result["set"] == "test" and len(result["answers"]) == 16 and result["thinking"] == 0
    assert result["low"] <= result["accuracy"] <= result["high"] and result["accuracy"] == result["pass@1"]
    assert result["accuracy"] == pytest.approx(sum(a["reward"] for a in result["answers"]) / 16, abs=1e-4)


def test_eval_with_a_recipe_reproduces_the_stages_figures(ladder: Ladder, small: Path, tmp_path: Path) -> None:
    resolved = small / "recipe.yaml"
    code, _, _ = ladder("eval", "-m", small / "rl", "--recipe", resolved, "--out", tmp_path / "eval.json")
    assert code == 0
    results = {(r["set"], r["temperature"]): r for r in read_json(tmp_path / "eval.json")["results"]}
    for name in ("easy", "hard"):
        of_stage = read_json(small / "rl" / "summary.json")[name]
        for temperature, figures in ((1.0, of_stage), (0.0, of_stage["greedy"])):
            for key in ("accuracy", "length", "mixed", "thinking"):
                assert results[name, temperature][key] == figures[key]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--task: no task to evaluate on"),
        (["--task", "chain", "--recipe", R1], "give --task or --recipe, one of the two"),
        (["--task", "chian"], "did you mean 'chain'?"),
        (["--task", "[a"], "--task: '[a' is not YAML"),
        (["--task", "7"], "--task"),
        (["--task", "chain"], "--reward: no reward is given"),
        (["--task", "chain", "--reward", "chian"], "no reward is called 'chian'"),
        (["--task", "chain", "--reward", "chain", "--split", "dev"], "there is no such split"),
        (["--task", "chain", "--n", "0"], "--n: input should be greater than or equal to 1, got 0"),
        (["--task", "chain", "--samples", "0"], "--samples: input should be greater than or equal to 1"),
        (["--task", "chain", "--temperature", "-1"], "--temperature: input should be greater than or equal to 0"),
        (["--task", "chain", "--pass-at", "4"], "--pass-at: pass@4 needs at least 4 answers to each problem"),
        (["--task", "chain", "--pass-at", "x"], "--pass-at: 'x' is not a positive integer"),
        (["--task", "chain", "--pass-at", "2", "--samples", "2", "--temperature", "0"], "set a temperature above 0"),
    ],
)
def test_invalid_eval_options(ladder: Ladder, small: Path, options: list[str], message: str) -> None:
    assert message in refused(ladder("eval", "-m", small / "rl", "--max-tokens", 4, *options))


def test_sample(ladder: Ladder, small: Path) -> None:
    ask = ("sample", "-m", small / "rl", "--max-tokens", 8, "3 a +1 b -2 =", "--seed", 3)
    code, out, err = ladder(*ask, "--n", 2)
    assert (code, err) == (0, "") and out.startswith("> 3 a +1 b -2 =\n") and len(out.splitlines()) == 3
    assert ladder(*ask, "--n", 2)[1] == out
    greedy = [ladder(*ask, "--temperature", 0, "--seed", seed)[1] for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def test_rich_markup_in_a_prompt_is_plain_text(ladder: Ladder, small: Path) -> None:
    assert "[/bold] [red]" in ladder("sample", "-m", small / "rl", "--max-tokens", 1, "[/bold] [red] 1")[1]


def test_export(ladder: Ladder, small: Path, tmp_path: Path) -> None:
    code, out, _ = ladder("export", "-m", small / "rl", tmp_path / "plain")
    assert code == 0 and "reloaded; largest logit difference" in out.replace("\n", " ")
    a, b = load_model(str(small / "rl" / "model")).model, load_model(str(tmp_path / "plain")).model
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert "already exists" in refused(ladder("export", "-m", small / "rl", tmp_path / "plain"))
    assert "is not an export dtype" in refused(ladder("export", "-m", small / "rl", tmp_path / "b", "--dtype", "int8"))
    assert not (tmp_path / "b").exists()


def test_inspect(ladder: Ladder, small: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1 a +1 =", "completion": " # 2"}\n{"prompt": "2 a +1 =", "completion": " # 3"}\n')
    code, out, err = ladder("inspect", rows, "-m", small / "rl", "-n", 1)
    assert code == 0, err
    assert "tokens 8 · trained 3 · BOS 1" in out and "# 2" in out and "# 3" not in out


# ---------------------------------------------------------------- errors


def test_models_that_cannot_be_loaded(ladder: Ladder, small: Path, tmp_path: Path, copy: Path) -> None:
    for model, message in (
        ("nobody/nothing-at-all", "neither a local directory nor reachable on the hub"),
        (tmp_path / "no.gguf", "there is no such file"),
        (tmp_path, "this directory holds no model"),
        ("./none", "there is no such model directory"),
        ("preset:chain", "a preset has random weights"),
    ):
        assert message in refused(ladder("sample", "-m", model, "1"))
    path = copy / "rl" / "model" / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    assert "the model cannot be read" in refused(ladder("sample", "-m", copy / "rl", "1"))
    assert "neither a local directory nor reachable" in refused(
        ladder("run", R1, *small_run.TINY, "--model", "nobody/nothing-at-all", "--out", tmp_path / "out")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"text": "1"}\n{"text": \n', "rows.jsonl:2:"),
        (b'{"text": "caf\xc3', "is not UTF-8"),
        (b"", "holds no usable row"),
        (b'{"wrods": 1}\n', "rows.jsonl:1"),
    ],
)
def test_data_that_cannot_be_read(ladder: Ladder, small: Path, tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(data)
    assert message in refused(ladder("inspect", "rows.jsonl", "-m", small / "rl"))
    recipe = {"model": {"source": str(small / "rl" / "model")}, "stages": {"sft": {"kind": "sft"}}}
    recipe["stages"]["sft"]["data"] = {"path": "rows.jsonl"}
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    assert message in refused(ladder("run", "mine.yaml"))
    assert not (tmp_path / "runs" / "mine" / "sft" / "model").exists()


def test_other_errors(ladder: Ladder, small: Path, tmp_path: Path) -> None:
    long = "1 a " * 200
    assert "tokens leaves no room in a context of 256" in refused(ladder("sample", "-m", small / "rl", long))
    assert "is not a run" in refused(ladder("lineage", tmp_path))
    assert "no tracker is called 'wandbb', did you mean 'wandb'?" in refused(ladder("replay", small, "wandbb"))
    assert "no recipe is called 'r11'" in refused(ladder("run", "r11"))
    assert "cannot be read" in refused(ladder("inspect", "none.jsonl", "-m", small / "rl"))
    assert "--max-tokens" in refused(ladder("sample", "-m", small / "rl", "--max-tokens", 0, "1"))
    assert "--top-p" in refused(ladder("sample", "-m", small / "rl", "--top-p", 2, "1"))
    assert "has no chat template" in refused(ladder("chat", "-m", small / "rl"))
    code, _, err = ladder("run", "r1", "--otu", "x")
    assert code == 2 and "No such option" in err


def test_debug_shows_the_traceback(ladder: Ladder) -> None:
    code, _, err = ladder("--debug", "run", "no.yaml")
    assert code == 2 and err.startswith("Traceback") and err.endswith("ladder: no.yaml: there is no such file\n")
    assert ladder("run", "--debug", "no.yaml")[2].startswith("Traceback")


def test_an_unexpected_exception_becomes_a_message(ladder: Ladder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("oh")

    monkeypatch.setattr("ladder.commands.runs.list_recipes", broken)
    code, _, err = ladder("recipes")
    assert code == 1 and err == "ladder: RuntimeError: oh\nRun the command again with --debug for the traceback.\n"
    assert "Traceback" in ladder("recipes", "--debug")[2]
