"""The kinds of stages and what ties them: gates, parents, inputs, and options that contradict each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ladder.base.errors import UserError
from ladder.base.files import read_json
from ladder.base.jsonl import read_lines
from ladder.contract.rollouts import InfraError, Outcome, Rollout, Sampling, Score
from ladder.pipeline import gates
from ladder.pipeline import recipe as recipes
from ladder.pipeline.build import samplers
from ladder.pipeline.kinds.rejection_sampling import RejectionSampling
from ladder.pipeline.kinds.rl import RL
from ladder.pipeline.kinds.sampling import Sampled
from ladder.pipeline.kinds.supervised import SFT, Pretrain
from ladder.pipeline.loop import ROUNDED, check_kl, check_ratio
from ladder.pipeline.recipe import ModelSpec, Recipe
from ladder.pipeline.run import base_of
from ladder.pipeline.run import plan as plan_recipe
from ladder.rewards.judge import RewardFailure
from ladder.signals import rows
from small_run import keys, plan, run

WEB = {"kind": "pretrain", "data": {"web": {"documents": 60}}, "batch": 300, "by": "tokens"}
RL_STAGE = {"kind": "rl", "from": "pretrain", "steps": 1, "prompts_per_step": 2, "group_size": 2}
RL_STAGE |= {"sampling": {"max_tokens": 8}}
SELECTS = {"kind": "rejection_sampling", "from": "pretrain"}

READS_PICK = {"kind": "sft", "from": "pretrain", "data": {"stage": "pick"}}


def write(tmp_path: Path, stages: dict[str, Any], **top: Any) -> Path:
    """Writes a recipe's file and returns its path."""
    recipe = {"name": "one", "threads": 1, "model": {"source": "preset:chain"}, "task": "chain", "reward": "chain"}
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(recipe | top | {"stages": stages}, sort_keys=False))
    return path


def error(tmp_path: Path, stages: dict[str, Any], **top: Any) -> str:
    """The error that running the recipe raises; checks that no stage is marked as finished after it."""
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        run(out, recipe=write(tmp_path, stages, **top))
    last = [*stages][-1]
    assert not (out / last / "summary.json").exists() and not (out / last / "model").exists()
    return str(caught.value)


# ---------------------------------------------------------------- gates


@pytest.mark.parametrize(
    ("bound", "holds"),
    [(">= 0.5", True), ("<= 0.5", True), ("> 0.5", False), ("<0.5", False), ("> 4e-1", True), (" >=-1 ", True)],
)
def test_a_gate(bound: str, holds: bool) -> None:
    summary = {"easy": {"accuracy": 0.5, "greedy": {"accuracy": 0.5}}}
    for name in ("easy.accuracy", "easy.greedy.accuracy"):
        if holds:
            gates.check("rl", {name: bound}, summary)
        else:
            with pytest.raises(UserError, match=rf"rl.require.{name}: is 0.5 and must be {bound.strip()}"):
                gates.check("rl", {name: bound}, summary)


@pytest.mark.parametrize("bound", ["0.9", "= 0.9", ">= ", ">= 1.2.3", "~ 1", ">= 0.9 and more"])
def test_a_gate_that_cannot_be_parsed(bound: str) -> None:
    with pytest.raises(UserError, match="is not a bound"):
        gates.check("rl", {"easy.accuracy": bound}, {"easy": {"accuracy": 1}})


def test_a_gate_on_a_missing_figure() -> None:
    for name in ("easy.acuracy", "hard.accuracy", "easy", "easy.accuracy.more"):
        with pytest.raises(UserError, match="the stage's summary has no such figure"):
            gates.check("rl", {name: ">= 0"}, {"easy": {"accuracy": 1}})


def test_a_gate_stops_the_run_and_keeps_what_was_trained(copy: Path) -> None:
    changes = ["r1_zero.require={easy.accuracy: '>= 0.99'}", "sft.steps=7"]
    with pytest.raises(UserError, match=r"r1_zero.require.easy.accuracy: is 0[.\d]* and must be >= 0.99"):
        run(copy, *changes)
    # what was done before and still holds stays in the summary; what would have to be done again does not
    assert list(read_json(copy / "summary.json")["stages"]) == ["pretrain", "r1_zero", "harvest"]
    assert plan(copy, *changes)["r1_zero"] == "done" and plan(copy, *changes)["sft"] == "stale"


# ---------------------------------------------------------------- parents


def test_the_base_is_the_pretrained_model() -> None:
    recipe = Recipe(model=ModelSpec(source="hub/model"), stages={"x": {}})
    pre = Pretrain.model_validate({"kind": "pretrain", "data": {"web": {}}})
    sft = SFT.model_validate({"kind": "sft", "from": "pre", "data": {"web": {}}})
    rl = RL.model_validate({"kind": "rl", "from": "sft"})
    done, places = {"pre": pre, "sft": sft}, {"pre": Path("run/pre"), "sft": Path("run/sft")}
    assert base_of(recipe, rl, done, places) == base_of(recipe, sft, done, places) == "run/pre/model"
    assert base_of(recipe, pre, {}, {}) == "hub/model"
    alone = SFT.model_validate({"kind": "sft", "data": {"web": {}}})
    assert base_of(recipe, rl, {"sft": alone}, places) == "hub/model"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"rl": RL_STAGE, "pretrain": WEB}, "stages.rl: 'pretrain' is not an earlier stage. Hint: put it"),
        ({"pretrain": WEB, "rl": RL_STAGE | {"from": "rl"}}, "stages.rl: 'rl' is not an earlier stage"),
        ({"pretrain": WEB, "rl": RL_STAGE | {"from": "sft"}}, "stages.rl: 'sft' is not an earlier stage"),
        (
            {"pretrain": WEB, "sft": {"kind": "sft", "from": "pretrain", "data": {"stage": "pretrain"}}},
            "stages.sft.data: stage 'pretrain' makes ",
        ),
        (
            {"pretrain": WEB, "harvest": SELECTS, "rl": RL_STAGE | {"from": "harvest"}},
            "stages.rl.from: stage 'harvest' makes ",
        ),
    ],
)
def test_parents_that_are_not_earlier_stages(tmp_path: Path, stages: dict[str, Any], message: str) -> None:
    assert message in error(tmp_path, stages)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- inputs


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for stage in (
        {"kind": "sft", "data": {"path": str(tmp_path / "no.jsonl")}},
        {"kind": "sft", "data": {"task": {"gsm8k": {"train": str(tmp_path / "no.jsonl")}}}},
        {"kind": "rl", "task": {"jsonl": {"train": str(tmp_path / "no.jsonl")}}},
    ):
        assert "there is no such file" in error(tmp_path, {"pretrain": WEB, "last": stage})
        assert not (tmp_path / "out").exists(), "nothing is begun"
    missing = {"user": {"function": str(tmp_path / "no.py") + ":fn"}}
    for field, value in (("reward", missing), ("watch", {"gold": missing})):
        said = error(tmp_path, {"pretrain": WEB, "last": RL_STAGE | {field: value}})
        assert f"stages.last.{field}" in said and "no file" in said
        assert not (tmp_path / "out").exists(), "nothing is begun"
    task = {"jsonl": {"train": str(tmp_path / "no.jsonl")}}
    assert "no.jsonl: there is no such file" in error(tmp_path, {"pretrain": WEB, "rl": RL_STAGE}, task=task)


def test_a_changed_file_is_another_identity(tmp_path: Path) -> None:
    data, code = tmp_path / "tasks.jsonl", tmp_path / "judge.py"
    data.write_text('{"prompt": "1 a +1 =", "answer": "2"}\n')
    code.write_text("def judge(completions, **_): return [0.0] * len(completions)\n")
    reward = {"user": {"function": f"{code}:judge"}}
    path = write(
        tmp_path,
        {"pretrain": WEB, "mine": RL_STAGE, "own": RL_STAGE | {"task": "chain", "reward": "chain"}},
        task={"jsonl": {"train": str(data)}},
        reward=reward,
    )
    before = keys(recipe=path)
    code.write_text("def judge(completions, **_): return [1.0] * len(completions) # other\n")
    after = keys(recipe=path)
    assert after["mine"] != before["mine"] and after["own"] == before["own"] and after["pretrain"] == before["pretrain"]
    data.write_text('{"prompt": "1 a +1 b +1 =", "answer": "3"}\n')
    assert keys(recipe=path)["mine"] != after["mine"] and keys(recipe=path)["own"] == before["own"]


def test_a_changed_model_directory_is_another_identity(tmp_path: Path) -> None:
    run(tmp_path / "out", recipe=write(tmp_path, {"pretrain": WEB}))
    model = tmp_path / "out" / "pretrain" / "model"
    path = write(tmp_path, {"rl": RL_STAGE | {"from": None}}, model={"source": str(model)})
    before = keys(recipe=path)["rl"]
    (model / "extra.json").write_text("{}")
    assert keys(recipe=path)["rl"] != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no usable row"),
        ("\n\n", "holds no usable row"),
        ('{"text": "1 a +1"}\n{"text": "1 a\n', "rows.jsonl:2:"),
        (b'{"text": "caf\xc3', "is not UTF-8"),
        ('{"words": 3}\n', "rows.jsonl:1"),
        ('{"prompt": "1 a +1 =", "completion": ""}\n', "rows.jsonl:1"),
        ('{"text": "' + "1 a " * 100 + '"}\n', "rows.jsonl:1: is 202 tokens long, more than max_tokens = 60"),
    ],
)
def test_data_that_cannot_be_trained_on(tmp_path: Path, text: str | bytes, message: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(text if isinstance(text, bytes) else text.encode())
    stage = {"kind": "sft", "data": {"path": str(rows)}, "encoding": {"max_tokens": 60}}
    said = error(tmp_path, {"sft": stage})
    assert message in said and "\n" not in said


def test_a_stage_that_kept_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("")
    with pytest.raises(UserError, match="this stage kept no example") as caught:
        rows.samples(path)
    assert caught.value.file == path


def test_stage_samples_take_the_tokens_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    ids = {"tokens": [1, 5, 6, 2], "mask": [0, 0, 1, 1], "logps": [0, 0, -1, -2]}
    row = ids | {"text": "a\u2028b\x85c", "prompt": "x"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (sample,) = rows.samples(path)
    assert sample.tokens.tolist() == [1, 5, 6, 2] and sample.mask.tolist() == [False, False, True, True]
    assert sample.meta["origin"] == f"{path}:1"


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts_per_step": 5000}, "rl.prompts_per_step: 5000 prompts a step out of 4096 tasks. Hint: lower it"),
        ({"sampling": {"temperature": 0}}, "stages.rl.sampling.temperature: greedy answers to a prompt are all"),
        ({"sampling": {"top_p": 0.9}}, "stages.rl.sampling.top_p: samples from a part of the distribution"),
        ({"sampling": {"top_k": 5}}, "stages.rl.sampling.top_k: samples from a part of the distribution"),
        ({"sampling": {"min_p": 0.1}}, "stages.rl.sampling.min_p: samples from a part of the distribution"),
        ({"loss": "PolicyGradient", "minibatches": 2}, "stages.rl.minibatches: PolicyGradient has no ratio"),
        ({"loss": "PolicyGradient", "epochs": 2}, "stages.rl.epochs: PolicyGradient has no ratio"),
        ({"loss": {"kind": "PolicyClip", "importance_cap": 2.0}}, "stages.rl.loss.importance_cap: corrects"),
        ({"group_size": 1}, "stages.rl.group_size: input should be greater than or equal to 2"),
        ({"lora": {"targets": ["q_prj"]}}, "the model has no linear layer called q_prj"),
        ({"lora": {"targets": "c_attn"}}, "the model has no linear layer called c_attn"),
        ({"reward": {"exac": {}}}, "no reward is called 'exac', did you mean 'exact'?"),
        ({"split": "valid"}, "there is no such split (there are: train, test)"),
        ({"task": {"jsonl": {"train": "TASKS"}}}, "a prompt of 257 tokens leaves no room in a context of 256"),
    ],
)
def test_conflicting_options(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tasks = tmp_path / "long.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": "1 " * (254 + i), "answer": "1"}) + "\n" for i in range(3)))
    change = json.loads(json.dumps(change).replace("TASKS", str(tasks)))
    assert message in error(tmp_path, {"pretrain": WEB, "rl": RL_STAGE | change})


def test_an_encoding_for_token_ids_is_refused(tmp_path: Path) -> None:
    pretrain = WEB | {"encoding": {"max_tokens": 9}}
    assert "stages.pretrain.encoding: applies to rows of text" in error(tmp_path, {"pretrain": pretrain})


def test_a_sampler_of_another_distribution_stops_the_run_at_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean ratio of such a sampler is 1, so the check must look at more than the mean."""
    monkeypatch.setattr(samplers, "sampling", lambda _: Sampling(max_tokens=8, temperature=0.8))
    rl = RL_STAGE | {"prompts_per_step": 64, "advantage": "reinforce_pp", "drop_zero_variance": False}
    said = error(tmp_path, {"pretrain": WEB, "rl": rl})
    assert "the sampler draws from another distribution than the one that is trained" in said


def test_what_must_hold_before_the_first_step() -> None:
    check_ratio({"first/ratio/mean": 1.001, "first/ratio/approx_kl": 1e-8, "nll": 9.0})
    check_ratio({"first/ratio/mean": 1.001, "first/ratio/approx_kl": 1e-3}, ROUNDED)
    check_ratio({"first/ratio/mean": 0.5}, None)
    check_kl({"first/kl": 1e-4})
    check_kl({"kl/response": 0.5, "length/mean": 100.0})
    for figures in (
        {"first/ratio/mean": 0.9},
        {"first/ratio/mean": 1.0, "first/ratio/approx_kl": 1e-3},
        {"first/ratio/mean": 1.0, "first/ratio/approx_kl": 0.1},
        {"probe/kl": 0.1},
    ):
        with pytest.raises(UserError, match="draws from another distribution"):
            check_ratio(figures)
    for figures in ({"first/kl": 0.1}, {"kl/response": 5.0, "length/mean": 100.0}, {"kl/response": -5.0}):
        with pytest.raises(UserError, match="the reference is another model"):
            check_kl(figures)


def test_a_preset_needs_a_task_that_brings_a_tokenizer(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "hello"}\n')
    stage = {"kind": "pretrain", "data": {"path": str(rows)}}
    assert "model.source: a preset has no tokenizer" in error(tmp_path, {"pretrain": stage}, task=None)
    assert "no preset is called 'chian'" in error(tmp_path, {"pretrain": WEB}, model={"source": "preset:chian"})
    model = {"source": "preset:chain", "config": {"hiden_size": 8}}
    assert "LlamaConfig has no field 'hiden_size'" in error(tmp_path, {"pretrain": WEB}, model=model)


def test_a_stage_needs_a_task_and_a_reward(tmp_path: Path) -> None:
    assert "stages.rl.task: no task is given" in error(tmp_path, {"pretrain": WEB, "rl": RL_STAGE}, task=None)
    assert "rl.reward: no reward is given" in error(tmp_path, {"pretrain": WEB, "rl": RL_STAGE}, reward=None)


# ---------------------------------------------------------------- kinds


def test_rejection_sampling_ends_once_enough_is_kept(copy: Path) -> None:
    run(copy, "harvest.keep=50")
    funnel = read_json(copy / "harvest" / "summary.json")["funnel"]
    assert len(read_lines(copy / "harvest" / "data.jsonl")) == funnel["kept"] == 50
    assert funnel["sampled"] == 128 * 4, "the second part was not sampled"
    assert read_json(copy / "sft" / "summary.json")["examples"] == 50


def test_rejection_sampling_that_keeps_nothing(tmp_path: Path) -> None:
    stage = SELECTS | {"num_prompts": 4, "group_size": 2, "sampling": {"max_tokens": 4}}
    said = error(tmp_path, {"pretrain": WEB, "harvest": stage | {"at_least": 2.0}})
    assert "harvest.at_least: none of the sampled answers was kept (sampled 8  judged 8  right 0" in said
    assert not (tmp_path / "out" / "harvest" / "data.jsonl").exists()


def test_rejection_sampling_stops_if_the_reward_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(group: Sequence[Rollout]) -> list[Outcome]:
        return [Score(1.0), InfraError("timed out")] * (len(group) // 2)

    monkeypatch.setattr(Sampled, "reward_of", lambda *_: judge)
    stage = SELECTS | {"num_prompts": 4, "group_size": 2, "sampling": {"max_tokens": 60}}
    path = write(tmp_path, {"pretrain": WEB, "harvest": stage})
    with pytest.raises(RewardFailure, match=r"4 of 8 answers of harvest from prompt 0 on .*InfraError: timed out"):
        run(tmp_path / "out", recipe=path)
    assert not list((tmp_path / "out" / "harvest").rglob("*.jsonl")) and not (tmp_path / "out/harvest/parts").exists()


def test_filters_are_known_before_anything_runs(tmp_path: Path) -> None:
    stage = {"kind": "rejection_sampling", "from": "pretrain", "filters": ["claen"]}
    assert "stages.harvest.filters: no filter is called 'claen', did you mean 'clean'?" in error(
        tmp_path, {"pretrain": WEB, "harvest": stage}
    )
    assert not (tmp_path / "out").exists()


def test_a_stage_that_only_evaluates(tmp_path: Path) -> None:
    stages = {"pretrain": WEB, "look": {"kind": "evaluate", "from": "pretrain"}}
    assert "the recipe has no evaluation sets" in error(tmp_path, stages)
    measured = {"sets": {"easy": {"task": "chain", "n": 4}}, "sampling": {"max_tokens": 8}}
    out = tmp_path / "out"
    run(out, recipe=write(tmp_path, stages, eval=measured))
    assert read_json(out / "look" / "summary.json")["easy"]["n"] == 4 and not (out / "look" / "model").exists()
    measured["sets"]["easy"]["n"] = 5
    run(out, recipe=write(tmp_path, stages, eval=measured))
    assert read_json(out / "look" / "summary.json")["easy"]["n"] == 5
    assert read_json(out / "look" / "summary.json")["easy"] == read_json(out / "pretrain" / "summary.json")["easy"]


def test_an_adapter_is_trained_saved_and_merged(tmp_path: Path) -> None:
    """The base model is the reference, so the KL at step 0 is 0; the saved model has the adapter merged."""
    stage = RL_STAGE | {"lora": {"rank": 2}, "kl_coef": 0.1, "advantage": "group_mean", "optim": {"lr": 0.01}}
    out = tmp_path / "out"
    run(out, recipe=write(tmp_path, {"pretrain": WEB, "rl": stage | {"prompts_per_step": 8, "group_size": 8}}))
    assert (out / "rl" / "adapter" / "adapter_config.json").is_file()
    assert not [p for p in (out / "rl" / "model").iterdir() if "adapter" in p.name]
    row = read_lines(out / "rl" / "metrics.jsonl")[0]
    assert abs(row["kl/response"]) < 1e-4 and abs(row["kl_base"]) < 1e-4
    assert plan(out, recipe=tmp_path / "one.yaml") == {"pretrain": "done", "rl": "done"}


def test_a_stage_may_train_all_weights_without_the_recipes_adapter(tmp_path: Path) -> None:
    recipe, _ = recipes.load(str(write(tmp_path, {"x": WEB}, model={"source": "preset:chain", "lora": {"rank": 3}})))
    assert recipe.model.lora is not None and recipe.model.lora.rank == 3
    for said, rank in ((None, 3), (False, None), ({"rank": 5}, 5)):
        config = RL.model_validate({"kind": "rl", "lora": said})
        lora = recipe.model.lora if config.lora is None else config.lora or None
        assert (lora.rank if lora else None) == rank
    assert RejectionSampling.makes == "data" and RL.makes == "model"


# ---------------------------------------------------------------- stages left out


def test_without_a_stage_its_children_start_from_its_parent(tmp_path: Path) -> None:
    sft = {"kind": "sft", "from": "pretrain", "data": {"web": {"documents": 60}}}
    path = write(tmp_path, {"pretrain": WEB, "sft": sft, "rl": RL_STAGE | {"from": "sft"}})
    recipe, _ = recipes.load(str(path), [], ["sft"])
    assert list(recipe.stages) == ["pretrain", "rl"] and recipe.stages["rl"]["from"] == "pretrain"
    recipe, _ = recipes.load(str(path), [], ["pretrain", "sft"])
    assert list(recipe.stages) == ["rl"] and "from" not in recipe.stages["rl"]


def test_leaving_out_a_missing_stage_or_one_that_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, {"pretrain": WEB, "pick": SELECTS, "sft": READS_PICK})
    with pytest.raises(UserError, match=r"--without: there is no stage 'pikc', did you mean 'pick'"):
        recipes.load(str(path), [], ["pikc"])
    recipe, document = recipes.load(str(path), [], ["pick"])
    with pytest.raises(UserError, match="'pick' is not an earlier stage"):
        plan_recipe(recipe, document, tmp_path / "out")


@pytest.mark.parametrize(
    ("stage", "blamed"),
    [
        (RL_STAGE | {"group": 2}, "stages.rl.group: is called 'group_size' now. Hint: write the new name"),
        (RL_STAGE | {"prompts": 2}, "stages.rl.prompts: is called 'prompts_per_step' now"),
        (RL_STAGE | {"drop_silent": True}, "is called 'drop_zero_variance' now"),
        ({"kind": "ppo", "missing_terminator": 1.0}, "is called 'missing_eos_penalty' now"),
        (SELECTS | {"prompts": 4}, "is called 'num_prompts' now"),
        (SELECTS | {"kind": "harvest"}, "stages.rl.kind: the kind 'harvest' is called 'rejection_sampling' now"),
        ({"kind": "measure"}, "the kind 'measure' is called 'evaluate' now"),
        ({"kind": "prefer", "data": {"path": "x.jsonl"}}, "the kind 'prefer' is called 'preference' now"),
    ],
)
def test_an_old_name_is_an_error_that_gives_the_new_one(tmp_path: Path, stage: dict[str, Any], blamed: str) -> None:
    assert blamed in error(tmp_path, {"pretrain": WEB, "rl": stage})
