"""Strict recipes: every error names file, line and field, and suggests the likely correction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import small_run
from ladder.base.config import read
from ladder.base.errors import UserError
from ladder.pipeline import recipe as recipes
from ladder.pipeline.run import plan

GOOD = """\
name: small
model: {source: "preset:chain"}
task: {chain: {steps: [3, 6]}}
reward: chain
eval:
  sets:
    easy: {task: chain, n: 4}
stages:
  pretrain:
    kind: pretrain
    data: {web: {documents: 100}}
  rl:
    kind: rl
    from: pretrain
    steps: 2
    optim: {lr: 1.0e-3}
"""


def error(tmp_path: Path, text: str | bytes, overrides: Sequence[str] = ()) -> UserError:
    """The UserError that planning the recipe raises."""
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        plan(*recipes.load(str(path), overrides), tmp_path / "out")
    assert str(caught.value.file or path) == str(path)
    assert "\n" not in str(caught.value)
    return caught.value


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_a_valid_recipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    recipe, document = recipes.load(str(path))
    assert recipe.name == "small" and recipe.save_every == 30
    assert [p.name for p in plan(recipe, document, tmp_path)] == ["pretrain", "rl"]


def test_a_recipe_without_a_name_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(changed("name: small\n", ""))
    assert recipes.load(str(path))[0].name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "message"),
    [
        ("reward: chain", "rewrad: chain", 4, "rewrad", "unknown key, did you mean 'reward'?"),
        ("    steps: 2", "    stesp: 2", 15, "stages.rl.stesp", "unknown key, did you mean 'steps'?"),
        ("{lr: 1.0e-3}", "{warmpu: 0.1}", 16, "stages.rl.optim.warmpu", "unknown key, did you mean 'warmup'?"),
        ("{task: chain, n: 4}", "{task: chain, m: 4}", 7, "eval.sets.easy.m", "unknown key"),
        ("{documents: 100}", "{documets: 100}", 11, "stages.pretrain.data.web.documets", "mean 'documents'?"),
        ("    steps: 2", "    steps: many", 15, "stages.rl.steps", "valid integer"),
        ("    steps: 2", "    steps: 0", 15, "stages.rl.steps", "greater than or equal to 1, got 0"),
        ("    steps: 2", "    steps: [1]", 15, "stages.rl.steps", "got [1]"),
        ("    kind: rl", "    kind: sftt", 13, "stages.rl.kind", "of kind 'sftt', did you mean 'sft'?"),
        ("    kind: rl\n", "", 12, "stages.rl.kind", "no stage is of kind None"),
        ("    data: {web: {documents: 100}}", "    epochs: 2", 9, "stages.pretrain.data", "required"),
        ('model: {source: "preset:chain"}', "seed: 1", None, "model", "required"),
        ("{web: {documents: 100}}", "{web: {documents: 100}, seeed: 1}", 11, "stages.pretrain.data.seeed", "'seed'?"),
        ("{web: {documents: 100}}", "{path: a.jsonl, layuot: text}", 11, "stages.pretrain.data.layuot", "'layout'?"),
        ("{web: {documents: 100}}", "{web: {documents: 0}}", 11, "stages.pretrain.data.web", "must be at least 1"),
        ("name: small", "sampler: {kind: vllm, cache_tokens: 9}", 1, "sampler.cache_tokens", "unknown key"),
        ("name: small", "sampler: {kind: native, cache_gb: 9}", 1, "sampler.cache_gb", "unknown key"),
        ("name: small", "sampler: {kind: nativ}", 1, "sampler.kind", "input should be 'native'"),
        ("    steps: 2", "    loss: PolicyClp", 15, "stages.rl.loss", "did you mean 'PolicyClip'?"),
        ("    steps: 2", "    loss: {kind: PolicyClip, clip_hgh: 1}", 15, "stages.rl.loss.clip_hgh", "'clip_high'"),
        ("    steps: 2", "    task: {chian: {}}", 15, "stages.rl.task", "did you mean 'chain'?"),
        ("    steps: 2", "    task: {chain: {stesp: [1, 2]}}", 15, "stages.rl.task.stesp", "'steps'?"),
        ("    steps: 2", "    sampling: {temperature: 0}", 15, "stages.rl.sampling.temperature", "greedy"),
        ("    steps: 2", "    require: {easy.accuracy: 'many'}", 15, "stages.rl.require.easy.accuracy", "not a bound"),
        ("    steps: 2", "    lora: {rank: 0}", 15, "stages.rl.lora.rank", "greater than or equal to 1"),
        ("{task: chain, n: 4}", "{task: chain, split: tset}", 7, "eval.sets.easy.split", "(there are: train, test)"),
        ("{task: chain, n: 4}", "{task: {chain: {steps: [9, 2]}}}", 7, "eval.sets.easy.task", "smaller one first"),
        ("  rl:\n", "  RL:\n", 8, "stages", "'RL' is not a valid stage name"),
        ("stages:", "stages: {}\nstage:", 9, "stage", "unknown key, did you mean 'stages'?"),
        ("  rl:\n    kind: rl\n", "  rl: 3\n  x:\n    kind: rl\n", 12, "stages.rl", "dictionary"),
    ],
)
def test_errors_name_line_and_field(
    tmp_path: Path, old: str, new: str, line: int | None, field: str, message: str
) -> None:
    err = error(tmp_path, changed(old, new))
    assert (err.line, err.field) == (line, field), str(err)
    assert message in str(err)


def test_a_key_given_twice(tmp_path: Path) -> None:
    err = error(tmp_path, changed("    steps: 2\n", "    steps: 2\n    from: pretrain\n"))
    assert (err.line, err.field) == (16, "stages.rl.from") and "given twice (first in line 14)" in str(err)
    err = error(tmp_path, GOOD + "name: again\n")
    assert (err.line, err.field) == (17, "name")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (GOOD + "a: [1, 2\nb: 3\n", 18, "is not valid YAML"),
        (GOOD + "a:\n\tb: 3\n", 18, "is not valid YAML"),
        (GOOD + "a: !!python/object/apply:os.system [ls]\n", 17, "is not valid YAML"),
        (GOOD + "? [1, 2]\n: 3\n", 17, "is not valid YAML"),
        ("- a\n- b\n", None, "must hold a mapping"),
        ("", None, "must hold a mapping"),
        (GOOD.encode().replace(b"small", b"caf\xe9"), None, "is not UTF-8 text (byte 9)"),
        (GOOD.encode()[:40] + "é".encode()[:1], None, "is not UTF-8 text (byte 40)"),
    ],
)
def test_invalid_yaml(tmp_path: Path, text: str | bytes, line: int | None, message: str) -> None:
    err = error(tmp_path, text)
    assert err.line == line and message in str(err)


def test_an_unreadable_file(tmp_path: Path) -> None:
    messages = {tmp_path / "no.yaml": "there is no such file", tmp_path: "cannot be read: Is a directory"}
    for path, message in messages.items():
        with pytest.raises(UserError, match=message) as caught:
            read(path)
        assert caught.value.file == path


def test_an_unknown_recipe_name() -> None:
    with pytest.raises(UserError, match=r"no recipe is called 'gsm8k_smolm2', did you mean 'gsm8k_smollm2'\?"):
        recipes.find("gsm8k_smolm2")


# ---------------------------------------------------------------- overrides


def value(tmp_path: Path, override: str, *keys: str) -> Any:
    """The value below `keys` after an override."""
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    data: Any = read(path, [override]).data
    for key in keys:
        data = data[key]
    return data


def test_overrides(tmp_path: Path) -> None:
    assert value(tmp_path, "seed=3", "seed") == 3
    assert value(tmp_path, "rl.steps=7", "stages", "rl", "steps") == 7
    assert value(tmp_path, "stages.rl.steps=8", "stages", "rl", "steps") == 8
    assert value(tmp_path, "rl.optim.lr=0.5", "stages", "rl", "optim") == {"lr": 0.5}
    assert value(tmp_path, "rl.optim.clip=2", "stages", "rl", "optim") == {"lr": 1e-3, "clip": 2}
    assert value(tmp_path, "rl.sampling.stop=[a, b]", "stages", "rl", "sampling") == {"stop": ["a", "b"]}
    assert value(tmp_path, "task={gsm8k: {train: a}}", "task") == {"gsm8k": {"train": "a"}}
    assert value(tmp_path, "about=x=y", "about") == "x=y"
    assert value(tmp_path, "reward=", "reward") is None


def test_an_override_may_set_a_section_that_the_file_lacks(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    recipe, _ = recipes.load(str(path), ["engine.workers=2", "rl.optim.clip=3"])
    assert recipe.engine.workers == 2 and recipe.stages["rl"]["optim"]["clip"] == 3


def test_a_float_that_yaml_reads_as_text_becomes_a_float(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    planned = plan(*recipes.load(str(path), ["rl.optim.lr=1e-3"]), tmp_path)
    assert planned[1].config.optim.lr == 1e-3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.steps", "'rl.steps' is not an override. Hint: write stage.field=value"),
        ("=3", "'=3' is not an override"),
        ("pertrain.steps=3", "this recipe has no stage or section called 'pertrain', did you mean 'pretrain'?"),
        ("rl.optim=[1", "rl.optim: '[1' is not a YAML value"),
        ("name.deep=3", "'name' is a value, not a group of fields"),
        ("seed.deep=3", "seed: input should be a valid integer"),
        ("rl.steps.deep=3", "'steps' is a value, not a group of fields"),
        ("eval.temperatures.0=3", "eval.temperatures"),
        ("sede=3", "sede: unknown key, did you mean 'seed'?"),
        ("rl.stesp=3", "stages.rl.stesp: unknown key, did you mean 'steps'?"),
    ],
)
def test_invalid_overrides(tmp_path: Path, override: str, message: str) -> None:
    assert message in str(error(tmp_path, GOOD, [override]))


def test_every_recipe_of_the_project_can_be_read() -> None:
    names = [name for name, path in recipes.available().items() if small_run.ROOT in path.resolve().parents]
    assert "r1" in names
    for name in names:
        recipe, document = recipes.load(str(recipes.available()[name]))
        assert recipe.about, f"{name} has no `about`"
        assert document.data["stages"]
