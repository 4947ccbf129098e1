"""A run: what its directory holds, what is done again and what is not, and that nothing half-written stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import small_run
import threads
from ladder.base.errors import UserError
from ladder.base.files import read_json, sha256
from ladder.base.jsonl import read_lines
from ladder.engine import checkpoint
from ladder.kernels import decode, library
from ladder.pipeline import lineage
from ladder.pipeline.run import locked
from small_run import STAGES, keys, plan, run

TRAINED = ("pretrain", "r1_zero", "sft", "rl")
DONE = dict.fromkeys(STAGES, "done")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """{file: (inode, modification time)} of every file of a stage."""
    files = [p for name in STAGES for p in (out / name).rglob("*") if p.is_file()]
    return {str(p.relative_to(out)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


# ---------------------------------------------------------------- what a run leaves


def test_the_summary(small: Path) -> None:
    summary = read(small / "summary.json")
    assert list(summary) == ["stages", "seed", "seconds"] and list(summary["stages"]) == [*STAGES]
    assert summary["seed"] == 0
    assert summary["seconds"] == pytest.approx(sum(s["seconds"] for s in summary["stages"].values()), abs=0.06)
    for name, stage in summary["stages"].items():
        assert stage == read(small / name / "summary.json")
        assert stage["seconds"] >= 0
        for which in ("easy", "hard"):
            figures = stage[which]
            assert {"accuracy", "length", "mixed"} <= figures.keys()
            assert 0 <= figures["accuracy"] <= 1 and 0 <= figures["mixed"] <= 1 and figures["length"] > 0
            if name != "harvest":
                assert figures["n"] == {"easy": 16, "hard": 8}[which]
                assert figures["low"] <= figures["accuracy"] <= figures["high"]
                assert figures["temperature"] == 1 and figures["greedy"]["temperature"] == 0


def test_the_files_of_a_stage(small: Path) -> None:
    for name in TRAINED:
        there = {p.name for p in (small / name).iterdir()}
        rollouts = {"rollouts.jsonl"} if name in ("r1_zero", "rl") else set()
        files = {"model", "metrics.jsonl", "evals.jsonl", "samples.json", "stage.json", "summary.json"}
        assert there == files | rollouts
        assert {"config.json", "model.safetensors", "tokenizer.json", "manifest.json"} <= {
            p.name for p in (small / name / "model").iterdir()
        }
        assert checkpoint.verify(small / name / "model") is None
    assert {p.name for p in (small / "harvest").iterdir()} == {"data.jsonl", "stage.json", "summary.json"}


def test_the_models_are_plain_directories(small: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(small / "rl" / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(small / "rl" / "model", local_files_only=True)
    assert type(model).__name__ == "LlamaForCausalLM" and model.num_parameters() > 100_000
    assert tokenizer.encode("1 a +2 =") == [1, *tokenizer.encode("1 a +2 =", add_special_tokens=False)]
    assert "ladder" not in (small / "rl" / "model" / "config.json").read_text()


def test_metrics_count_the_steps(small: Path) -> None:
    for name in TRAINED:
        rows = read_lines(small / name / "metrics.jsonl")
        assert [r["step"] for r in rows] == [*range(1, len(rows) + 1)]
        assert len(rows) == read(small / name / "summary.json")["steps"]
        assert all("loss" in r and "time" in r for r in rows)
    for name in ("r1_zero", "rl"):
        rows = read_lines(small / name / "metrics.jsonl")
        assert all({"reward/mean", "length/mean", "entropy", "kl_base", "mixed"} <= r.keys() for r in rows)
        assert abs(rows[0]["first/ratio/mean"] - 1) < 1e-3
    assert abs(read_lines(small / "r1_zero" / "metrics.jsonl")[0]["kl_base"]) < 1e-4


def test_evaluations_and_samples(small: Path) -> None:
    for name in TRAINED:
        evals = read_lines(small / name / "evals.jsonl")
        steps = read(small / name / "summary.json")["steps"]
        assert [(e["step"], e["set"], e["temperature"]) for e in evals] == [
            (steps, which, temperature) for which in ("easy", "hard") for temperature in (1.0, 0.0)
        ]
        shown = read(small / name / "samples.json")
        assert [s["set"] for s in shown] == ["easy"] * 3 + ["hard"] * 3
        assert all({"task", "prompt", "answer", "text", "reward", "length"} <= s.keys() for s in shown)
    of = {name: [s["prompt"] for s in read(small / name / "samples.json")] for name in TRAINED}
    assert of["pretrain"] == of["r1_zero"] == of["rl"], "the same problems are answered by each stage"


def test_rollouts(small: Path) -> None:
    rows = read_lines(small / "r1_zero" / "rollouts.jsonl")
    assert [r["step"] for r in rows] == [1] * 16 + [2] * 16
    assert {r["reward"] for r in rows} <= {0.0, 1.0} and len({r["prompt"] for r in rows}) > 4


def test_the_rejection_sampling_rows_hold_the_sampled_tokens(small: Path) -> None:
    rows = read_lines(small / "harvest" / "data.jsonl")
    assert len(rows) == read(small / "harvest" / "summary.json")["funnel"]["kept"] > 100
    for row in rows:
        assert set(row) == {"task", "prompt", "text", "reward", "tokens", "mask", "logps"}
        assert len(row["tokens"]) == len(row["mask"]) and row["tokens"][0] == 1 and row["tokens"][-1] == 2
        drawn = row["mask"].index(1)
        assert row["mask"] == [0] * drawn + [1] * (len(row["mask"]) - drawn)
    # what was asked for was any answer, so the accuracy is that of the rewards, not 1
    figures = read(small / "harvest" / "summary.json")["easy"]
    assert figures["accuracy"] < 1 and 0 < sum(r["reward"] for r in rows) < len(rows)


def test_the_resolved_recipe_has_every_field_and_can_be_run(small: Path) -> None:
    resolved = small / "recipe.yaml"
    data = yaml.safe_load(resolved.read_text(encoding="utf-8"))
    assert data["stages"]["rl"]["advantage"] == "group_std" and data["stages"]["pretrain"]["from"] is None
    assert data["stages"]["sft"]["data"] == {"stage": "harvest"} and data["save_every"] == 30.0
    assert keys(recipe=resolved) == keys()
    assert plan(small, recipe=resolved) == DONE


def test_lineage(small: Path) -> None:
    records = {s["name"]: s for s in lineage.stages(small)}
    assert records["sft"]["parents"] == {"pretrain": records["pretrain"]["key"], "harvest": records["harvest"]["key"]}
    assert records["pretrain"]["parents"] == {} and records["rl"]["parents"] == {"sft": records["sft"]["key"]}
    text = "\n".join(lineage.lines(small))
    assert text.count("verified") == 5 and "from model preset:chain" in text and "seed 0, code" in text


# ---------------------------------------------------------------- what is done again


def test_a_second_run_does_nothing(copy: Path) -> None:
    before = stamps(copy)
    said = run(copy).text
    assert said.count("done before") == 5 and stamps(copy) == before


def test_a_changed_stage_and_what_depends_on_it(copy: Path) -> None:
    assert plan(copy, "rl.steps=3") == DONE | {"rl": "stale"}
    assert plan(copy, "sft.optim.lr=0.5") == DONE | {"sft": "stale", "rl": "stale"}
    assert plan(copy, "harvest.per_prompt=1") == DONE | dict.fromkeys(("harvest", "sft", "rl"), "stale")
    assert plan(copy, "r1_zero.loss=CISPO") == DONE | dict.fromkeys(("r1_zero", "harvest", "sft", "rl"), "stale")
    assert set(plan(copy, "seed=1").values()) == set(plan(copy, "engine.budget=9").values()) == {"stale"}
    assert set(plan(copy, "model.config.hidden_size=32").values()) == {"stale"}

    before, weights = stamps(copy), sha256(copy / "rl" / "model")
    said = run(copy, "rl.steps=3").text
    assert said.count("done before") == 4 and "the earlier result is moved to .stale/" in said
    after = stamps(copy)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed and all(name.startswith("rl/") for name in changed)
    assert len(read_lines(copy / "rl" / "metrics.jsonl")) == 3
    assert sha256(copy / "rl" / "model") != weights

    # and back: what was moved aside returns, without being trained again
    assert plan(copy)["rl"] == "stale"
    said = run(copy).text
    assert "restored from .stale/: an earlier run" in said
    assert sha256(copy / "rl" / "model") == weights and plan(copy) == DONE
    assert read(copy / "rl" / "summary.json")["steps"] == 2
    assert [p.name for p in (copy / ".stale").iterdir()] == [f"rl-{keys('rl.steps=3')['rl'][:12]}"]


def test_settings_that_change_no_weight_change_no_identity(copy: Path) -> None:
    same = keys()
    for change in (
        *("name=other", "about=x", "save_every=1", "trackers=[tensorboard]", "keep_rollouts=3", "eval=null"),
        *("eval.sets.easy.n=9", "eval.temperatures=[1.0]", "rl.eval_every=1", "rl.require={easy.accuracy: '>= 0.5'}"),
    ):
        assert keys(change) == same, change
    more = f"threads={threads.NUMBER + 1}"
    for change in ("seed=1", more, "reward={exact: {}}", "chat_template=true", "sampler.slots=3", "rl.group_size=9"):
        assert keys(change)["rl"] != same["rl"], change


def test_a_changed_evaluation_trains_nothing(copy: Path) -> None:
    assert plan(copy, "eval.sets.easy.n=9") == dict.fromkeys(TRAINED, "resume") | {"harvest": "done"}
    weights = {name: sha256(copy / name / "model") for name in TRAINED}
    metrics = {name: stamps(copy)[f"{name}/metrics.jsonl"] for name in TRAINED}
    run(copy, "eval.sets.easy.n=9")
    assert {name: sha256(copy / name / "model") for name in TRAINED} == weights
    assert {name: stamps(copy)[f"{name}/metrics.jsonl"] for name in TRAINED} == metrics
    assert read(copy / "summary.json")["stages"]["rl"]["easy"]["n"] == 9
    assert len(read_lines(copy / "rl" / "evals.jsonl")) == 4
    assert plan(copy, "eval.sets.easy.n=9") == DONE


def damage_weights(out: Path) -> None:
    path = out / "sft" / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate_weights(out: Path) -> None:
    path = out / "sft" / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def remove_model(out: Path) -> None:
    shutil.rmtree(out / "sft" / "model")


def change_data(out: Path) -> None:
    path = out / "harvest" / "data.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"reward": 0.0', '"reward": 1.0', 1), encoding="utf-8")


def remove_data(out: Path) -> None:
    (out / "harvest" / "data.jsonl").unlink()


def remove_stage(out: Path) -> None:
    shutil.rmtree(out / "rl")


@pytest.mark.parametrize(
    "damage", [damage_weights, truncate_weights, remove_model, change_data, remove_data, remove_stage]
)
def test_a_damaged_result_is_made_again(copy: Path, small: Path, damage: Callable[[Path], None]) -> None:
    before = stamps(copy)
    damage(copy)
    stage = {"change_data": "harvest", "remove_data": "harvest", "remove_stage": "rl"}.get(damage.__name__, "sft")
    assert plan(copy) == DONE | {stage: "new"}
    run(copy)
    after = stamps(copy)
    touched = {name.split("/")[0] for name in before if before[name] != after.get(name)}
    assert touched == {stage}, "what depends on it is the same, for the same bytes were made again"
    result = "data.jsonl" if stage == "harvest" else "model/model.safetensors"
    assert (copy / stage / result).read_bytes() == (small / stage / result).read_bytes()


def test_a_lost_summary_is_written_again(copy: Path, small: Path) -> None:
    (copy / "rl" / "summary.json").unlink()
    weights = stamps(copy)["rl/model/model.safetensors"]
    run(copy)
    new, old = read(copy / "rl" / "summary.json"), read(small / "rl" / "summary.json")
    assert {**new, "seconds": 0} == {**old, "seconds": 0}
    assert stamps(copy)["rl/model/model.safetensors"] == weights


def test_a_damaged_stale_result_is_not_restored(copy: Path) -> None:
    run(copy, "rl.steps=3")
    (kept,) = (copy / ".stale").iterdir()
    (kept / "model" / "model.safetensors").write_bytes(b"")
    assert "comes back" not in run(copy).text
    assert plan(copy) == DONE and (copy / "rl" / "model" / "model.safetensors").stat().st_size > 1000


def test_the_same_bytes_in_another_directory(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    run(out)
    assert small_run.kill_test().fingerprint(out) == small_run.kill_test().fingerprint(small)


# ---------------------------------------------------------------- one run at a time, whole or not at all


def test_two_runs_in_one_directory(copy: Path) -> None:
    with locked(copy), pytest.raises(UserError, match=rf"another run \(process {os.getpid()}\) is using") as caught:
        run(copy)
    assert caught.value.file == copy and "--out" in str(caught.value)
    assert run(copy).text.count("done before") == 5


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write here"):
        run(tmp_path / "file" / "r1")


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fsync(path: Path) -> None:
    """Raises "disk full" for the last stage's summary, after its bytes were written."""
    if path.parent.name == "rl" and path.name == ".summary.json.partial":
        no_room()


REFUSED = {
    "checkpoint": ("ladder.engine.engine.Engine.save", no_room),
    "model": ("ladder.pipeline.loop.save_model", no_room),
    "metrics": ("ladder.base.jsonl.JsonLines.write", no_room),
    "summary": ("ladder.base.files.fsync", fsync),
}


@pytest.mark.parametrize("where", REFUSED)
def test_a_full_disk(copy: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    changes = ["rl.steps=3", "save_every=0"]
    with monkeypatch.context() as m:
        m.setattr(*REFUSED[where])
        with pytest.raises(UserError, match="the disk is full") as caught:
            run(copy, *changes)
        assert "run again" in str(caught.value)
    left = [p for p in copy.rglob("*") if p.name.endswith((".partial", ".old"))]
    assert not left
    assert read(copy / "rl" / "stage.json")["status"] == "running"
    assert (copy / "rl" / "model").exists() == (where == "summary")
    run(copy, *changes)
    assert plan(copy, *changes) == DONE and len(read_lines(copy / "rl" / "metrics.jsonl")) == 3


def test_torch_threads_are_set_from_the_recipe(copy: Path) -> None:
    torch.set_num_threads(threads.NUMBER + 1)
    run(copy)
    assert torch.get_num_threads() == threads.NUMBER


CAP = "loss={kind: PolicyClip, importance_cap: 2.0}"


@pytest.mark.parametrize("what", ["engine.matmul=medium", "sampler.dtype=bfloat16"])
def test_rounding_on_one_side_needs_a_correction(copy: Path, what: str) -> None:
    """A loss with a ratio to the sampler's log-probabilities needs a correction of the rounding difference."""
    with pytest.raises(UserError) as error:
        plan(copy, what)
    assert error.value.field == what.split("=")[0] and "importance_cap" in str(error.value.hint)


def test_a_correction_is_allowed_for_half_precision_on_a_gpu(copy: Path) -> None:
    """On a GPU engine and sampler use different kernels; on a CPU both use the same modules."""
    on_gpu = "model.device=cuda", "model.dtype=bfloat16"
    assert plan(copy, *on_gpu, f"rl.{CAP}") and plan(copy, *on_gpu)
    with pytest.raises(UserError, match="the same modules"):
        plan(copy, "model.dtype=bfloat16", f"rl.{CAP}")


def test_a_bfloat16_sampler_runs_with_a_correction(tmp_path: Path) -> None:
    if decode.kernels() is None:
        pytest.skip("no C compiler here")
    run(tmp_path / "m", "sampler.dtype=bfloat16", f"r1_zero.{CAP}", f"rl.{CAP}")
    rows = [row for row in read_lines(tmp_path / "m" / "rl" / "metrics.jsonl") if "importance/mean" in row]
    assert rows and all(0 < abs(row["importance/mean"] - 1) < 0.05 for row in rows)


def test_the_matmul_precision_is_set_from_the_recipe(copy: Path, tmp_path: Path) -> None:
    try:
        run(tmp_path / "m", "engine.matmul=medium", f"r1_zero.{CAP}", f"rl.{CAP}")
        assert torch.get_float32_matmul_precision() == "medium"
        rows = read_lines(tmp_path / "m" / "rl" / "metrics.jsonl")
        assert all(abs(row["importance/mean"] - 1) < 0.05 for row in rows if "importance/mean" in row)
        assert any("importance/mean" in row for row in rows)
        run(copy)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_until_removes_nothing_from_a_finished_run(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "r1"
    shutil.copytree(small, out)
    before = read_json(out / "summary.json"), (out / "recipe.yaml").read_text(encoding="utf-8")
    run(out, until="r1_zero")
    assert (read_json(out / "summary.json"), (out / "recipe.yaml").read_text(encoding="utf-8")) == before


def test_a_run_reports_why_it_has_no_kernels(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "lacking", lambda: "there is no C compiler")
    assert "slower than it could be:[/yellow] there is no C compiler" in run(copy).text
    monkeypatch.undo()
    if library.lacking() is None:
        assert "slower" not in run(copy).text
