"""Annotators, preferences, reward models and RLHF as stages: one tiny run of the whole recipe, and its mistakes."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import small_run
import threads
from ladder.base.errors import UserError
from ladder.base.files import read_json, write_lines
from ladder.base.jsonl import read_lines
from ladder.contract.training import Pair, Reference, Sample
from ladder.engine.engine import Engine
from ladder.pipeline import loop
from ladder.pipeline.build import models
from ladder.pipeline.kinds.preferences import agreement, split_by_prompt
from ladder.pipeline.stage import Interrupted
from ladder.signals import rows
from ladder.tracking.log import RunLog

RECIPE = small_run.ROOT / "recipes" / "preferences.yaml"
TINY = [
    "engine.workers=1",
    "sampler.workers=1",
    "pretrain.data.web.documents=2000",
    "annotate.num_prompts=96",
    "annotate.sampling.max_tokens=30",
    "reward_model.epochs=1",
    "reward_model.batch=16",
    *(f"{s}.steps=2" for s in ("ppo", "grpo")),
    *(f"{s}.prompts_per_step=8" for s in ("ppo", "grpo")),
    *(f"{s}.sampling.max_tokens=30" for s in ("ppo", "grpo")),
    "grpo.group_size=4",
    "dpo.epochs=1",
    "dpo.batch=16",
    "kto.epochs=1",
    "kto.batch=32",
    "eval.sets.test.n=8",
    "eval.sampling.max_tokens=30",
]


def run(out: Path, *changes: str, until: str | None = None) -> small_run.Listening:
    return small_run.run(out, *TINY, *changes, recipe=RECIPE, until=until)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("preferences") / "run"
    run(out)
    return out


def test_annotators_err_at_their_rate_and_the_rows_hold_no_gold_score(done: Path) -> None:
    rows = read_lines(done / "annotate" / "data.jsonl")
    summary = read_json(done / "annotate" / "summary.json")
    assert len(rows) == summary["pairs"] > 20
    wrong = sum(r["margin"] < 0 for r in rows)
    assert summary["agreement"] == pytest.approx(1 - wrong / len(rows), abs=1e-4)
    assert 0 < wrong / len(rows) < 0.3
    sides = {f"{side}{what}" for side in ("chosen", "rejected") for what in ("", "_tokens", "_mask", "_logps")}
    assert set(rows[0]) == {"task", "prompt", "prompt_tokens", "margin"} | sides


def test_pairs_are_held_out_by_prompt(done: Path) -> None:
    pairs = rows.pairs(done / "annotate" / "data.jsonl")
    kept, held = split_by_prompt(pairs, 0.3)

    def prompts(some: list) -> set[tuple[int, ...]]:
        return {tuple(p.chosen.tokens[: int(p.chosen.mask.numpy().argmax())].tolist()) for p in some}

    assert kept and held and not prompts(kept) & prompts(held)


def test_agreement_with_held_out_preferences_worked_by_hand() -> None:
    """Pairs: one of two is ranked correctly. Answers: liked 2 and 0, disliked 1 and 0: of the four combinations two are
    ranked correctly, one is a tie."""
    answers = [Sample(torch.tensor([1, 2]), torch.tensor([False, True]), {}, {"label": x}) for x in (1, 0, 1, 0)]
    pairs = [Pair(answers[0], answers[1]), Pair(answers[2], answers[3])]
    assert agreement(pairs, torch.tensor([2.0, 1.0, -1.0, 0.0])) == {"accuracy": 0.5, "n": 2.0}
    assert agreement(answers, torch.tensor([2.0, 1.0, 0.0, 0.0])) == {"auc": 0.625, "n": 4.0}
    assert agreement(answers[:1], torch.tensor([2.0])) == {"n": 1.0}


def test_labelled_answers_are_held_out_too(done: Path, tmp_path: Path) -> None:
    asked = [f"{i} a +1 =" for i in range(10)]
    told = [{"prompt": q, "completion": f" # {5 + like}", "label": like} for q in asked for like in (True, False)]
    write_lines(tmp_path / "told.jsonl", told)
    file = f"liked.data={{path: {tmp_path / 'told.jsonl'}}}"
    recipe = tmp_path / "own.yaml"
    stage = "{kind: preference, data: {path: x.jsonl}, loss: KTO, batch: 64, holdout: 0.3}"
    recipe.write_text(f"model: {{source: x}}\nthreads: 1\nstages:\n  liked: {stage}\n", encoding="utf-8")
    small_run.run(tmp_path / "out", f"model.source={done / 'pretrain' / 'model'}", file, recipe=recipe)
    figures = read_json(tmp_path / "out" / "liked" / "summary.json")
    assert 0 <= figures["held_out"]["auc"] <= 1 and figures["held_out"]["n"] >= 2
    assert figures["held_out"]["n"] + figures["answers"] == len(told)


def test_the_reward_model_is_a_plain_classifier(done: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(done / "reward_model" / "model")
    assert model.config.num_labels == 1 and float(model.score.weight.detach().abs().sum()) > 0
    held = read_json(done / "reward_model" / "summary.json")["held_out"]
    assert 0 <= held["low"] <= held["accuracy"] <= held["high"] <= 1
    assert sum(n for *_, n in read_json(done / "reward_model" / "held_out.json")["bins"]) == held["n"]


def test_the_first_losses_have_their_known_values(done: Path) -> None:
    assert read_lines(done / "dpo" / "metrics.jsonl")[0]["first/loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert read_lines(done / "kto" / "metrics.jsonl")[0]["first/loss"] == pytest.approx(0.5, abs=1e-6)
    assert read_lines(done / "reward_model" / "metrics.jsonl")[0]["first/loss"] == pytest.approx(0.6931472, abs=1e-6)
    first = read_lines(done / "ppo" / "metrics.jsonl")[0]
    assert first["kl/response"] == pytest.approx(0, abs=1e-4)
    assert "critic/loss" in first and "watched/gold" in first


def test_scores_are_shown_as_scores(done: Path) -> None:
    assert read_json(done / "summary.json")["stages"]["ppo"]["test"].get("graded") is True


def test_a_reference_that_differs_from_the_policy_stops_the_run() -> None:
    loop.check_reference(0.693147, 0.6931472)
    with pytest.raises(UserError, match="the reference's log-probabilities are of another model"):
        loop.check_reference(0.69315, 0.6931472)
    loop.check_reference(0.69315, 0.6931472, 27.0)  # float32 knows sums of 27 nats to a few millionths
    with pytest.raises(UserError, match="the reference's log-probabilities are of another model"):
        loop.check_reference(0.7, 0.6931472, 3000.0)


def test_the_check_is_made_in_a_run(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    shutil.copytree(done, out)
    shutil.rmtree(out / "dpo")

    def other(engine: Engine) -> Reference:
        return lambda units: [{"logps": c["logps"] - 0.01} for c in engine.forward(units)]

    monkeypatch.setattr(models, "reference", other)
    with pytest.raises(UserError, match=r"should be 0\.69314718"):
        run(out, until="dpo")


def test_ppo_resumes_with_its_critic(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    shutil.copytree(done, out)
    shutil.rmtree(out / "ppo")
    whole = RunLog.step

    def step(self: RunLog, number: int, figures: dict[str, float]) -> None:
        whole(self, number, figures)
        if self.metrics.path.parent.name == "ppo" and number == 1:
            monkeypatch.setattr(RunLog, "step", whole)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunLog, "step", step)
    with pytest.raises(Interrupted):
        run(out, until="ppo")
    assert (out / "ppo" / "checkpoints" / "step-000001" / "critic" / "trained.safetensors").exists()
    run(out, until="ppo")
    kill_test = small_run.kill_test()
    ours, theirs = kill_test.fingerprint(out), kill_test.fingerprint(done)
    assert {k: v for k, v in ours.items() if k.startswith("ppo/")} == {
        k: v for k, v in theirs.items() if k.startswith("ppo/")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ppo.from=reward_model", "makes a reward model, and a model is needed"),
        ("ppo.reward={stage: annotate}", "makes data, and a reward model is needed"),
        ("dpo.data={stage: reward_model}", "makes a reward model, and data is needed"),
        ("ppo.reward=chain_gold", "no reward model to take the critic's initial weights from"),
        ("ppo.advantage=group_std", "ppo.advantage: unknown key"),
        ("ppo.target_kl=-1", "greater than 0"),
        ("reward_model.eval_every=3", "leave eval_every out"),
        ("dpo.loss=DPOO", "did you mean 'DPO'"),
        ("annotate.error=0.5", "less than 0.5"),
        ("dpo.loss={kind: DPO, beta: 0}", "must be above 0"),
    ],
)
def test_mistakes_are_found_before_anything_runs(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_run.plan(Path("nowhere"), *TINY, change, recipe=RECIPE)


def test_a_users_preference_file(done: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": "3 a +1 =", "chosen": " a 3 +1 4 # 4", "rejected": " # 5"}) for _ in range(4)]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    out = tmp_path / "own"
    own = [f"dpo.data={{path: {file}}}", "dpo.holdout=0", "dpo.batch=2", f"model.source={done / 'pretrain' / 'model'}"]
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "model: {source: x}\nthreads: 1\nstages:\n  dpo: {kind: preference, data: {path: x.jsonl}}\n", encoding="utf-8"
    )
    threads.settle()
    small_run.run(out, *own, recipe=recipe)
    last = read_lines(out / "dpo" / "metrics.jsonl")[-1]
    assert last["step"] == 2 and last["rewards/margin"] >= 0
