"""Task sources: tasks made from rows, errors about wrong rows, and splits without a common prompt."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from ladder.base.errors import UserError
from ladder.contract.rollouts import Rollout, Score, Task
from ladder.rewards import build as build_reward
from ladder.tasks import TaskSource, build
from ladder.tasks.split import deal, fill, identity

needs_gym = pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs signal-ladder[gym]")


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" if not isinstance(r, str) else r + "\n" for r in rows))
    return str(path)


def gsm(i: int, answer: str = "18") -> dict[str, str]:
    return {
        "question": f"Ann has {i} eggs {{really}}. How many?",
        "answer": f"She has {i}*2 = <<{i}*2={2 * i}>>{2 * i}.\nSo $<<1+1=2>>2.\n#### {answer}",
    }


def judge(spec: Any, task: Task, text: str) -> float:
    (outcome,) = build_reward(spec)([Rollout(task, [0, 1], [False, True], [0.0, 0.0], text, "eos")])
    assert isinstance(outcome, Score), outcome
    return outcome.value


def disjoint_splits(source: TaskSource, n: int | None = None) -> dict[str, list[Task]]:
    """The tasks of every split, after checking that no prompt is in two splits."""
    tasks_by_split = {name: source.tasks(name, n) for name in source.splits}
    split_of: dict[str, str] = {}
    for name, tasks in tasks_by_split.items():
        for task in tasks:
            first_split = split_of.setdefault(identity(task.prompt), name)
            assert first_split == name, (task.prompt, first_split, name)
    return tasks_by_split


# ------------------------------------------------------------ splits and templates


def test_shares_are_met_and_a_prompt_has_one_split() -> None:
    splits = [deal(f"question {i}", {"valid": 0.1, "test": 0.3}) for i in range(4000)]
    assert splits.count("valid") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 4000 == pytest.approx(0.3, abs=0.03)
    assert {deal(p, {"test": 0.5}) for p in ("How  many?", "how many?", " HOW MANY?\n")} == {
        deal("how many?", {"test": 0.5})
    }


def test_the_split_of_a_prompt_is_golden() -> None:
    """With another hash, training would see questions that an earlier run held out."""
    assert "".join(deal(f"q{i}", {"test": 0.5})[1] for i in range(16)) == "reeeeeereeeeeree"


def test_templates_fill_known_placeholders_and_keep_other_braces() -> None:
    assert fill("{question} {{x}} {other}", {"question": "{answer}"}) == "{answer} {{x}} {other}"
    assert fill([{"role": "user", "content": "Q: {question}"}], {"question": "?"}) == [
        {"role": "user", "content": "Q: ?"}
    ]


# ------------------------------------------------------------ GSM8K


def test_a_row_of_gsm8k_becomes_a_task_and_a_worked_example(tmp_path: Path) -> None:
    source = build({"gsm8k": {"train": write(tmp_path / "a.jsonl", [gsm(3, "1,800")]), "prompt": "Q: {question}\n"}})
    (task,) = source.tasks("train")
    assert (task.prompt, task.answer) == ("Q: Ann has 3 eggs {really}. How many?\n", "1800")
    (row,) = source.examples("train")  # type: ignore[attr-defined]
    assert row == {
        "prompt": task.prompt,
        "completion": "<thinking>She has 3*2 = 6.\nSo $2.</thinking>1800",
    }
    assert judge("math", task, row["completion"]) == 1.0 and judge("format", task, row["completion"]) == 1.0
    assert judge("math", task, "<thinking>1800</thinking>1799") == 0.0


def test_gsm8k_as_chat_and_with_annotations(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [gsm(3)])
    prompt = [{"role": "system", "content": "Think."}, {"role": "user", "content": "{question}"}]
    source = build(
        {"gsm8k": {"train": path, "prompt": prompt, "completion": "{working} #### {answer}", "annotations": True}}
    )
    (row,) = source.examples("train")  # type: ignore[attr-defined]
    assert row["prompt"][1] == {"role": "user", "content": "Ann has 3 eggs {really}. How many?"}
    assert row["completion"] == [{"role": "assistant", "content": "She has 3*2 = <<3*2=6>>6.\nSo $<<1+1=2>>2. #### 18"}]


def test_gsm8k_splits_are_disjoint_and_cover_the_file(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [gsm(i) for i in range(300)])
    test = write(tmp_path / "b.jsonl", [gsm(i) for i in range(300, 320)])
    tasks = disjoint_splits(build({"gsm8k": {"train": train, "test": test, "valid_share": 0.2}}))
    assert len(tasks["train"]) + len(tasks["valid"]) == 300 and len(tasks["test"]) == 20
    assert 30 < len(tasks["valid"]) < 90


def test_a_question_in_both_files_is_an_error_naming_its_line(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.jsonl", [gsm(1), gsm(2)]), write(tmp_path / "b.jsonl", [gsm(2)])
    with pytest.raises(UserError, match=r"a.jsonl:2: question: is in .*b.jsonl too"):
        build({"gsm8k": {"train": train, "test": test}}).tasks("train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q?"}, "a.jsonl:2: answer: is missing"),
        ({"question": 7, "answer": "#### 1"}, "a.jsonl:2: question: must be text"),
        ({"question": " ", "answer": "#### 1"}, "a.jsonl:2: question: is empty"),
        ({"question": "Q?", "answer": "18"}, "a.jsonl:2: answer: has no `####`"),
        ({"question": "Q?", "answer": "x ####  "}, "a.jsonl:2: answer: has no `####`"),
        ("{broken", "a.jsonl:2:.*JSON"),
        ("[1]", "a.jsonl:2:.*object"),
    ],
)
def test_an_error_about_a_row_names_file_line_and_field(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "a.jsonl", [gsm(1), row])
    with pytest.raises(UserError, match=message):
        build({"gsm8k": {"train": path}}).tasks("train")


# ------------------------------------------------------------ JSONL


def test_jsonl_keeps_further_columns_in_meta(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "2+2"}]
    path = write(
        tmp_path / "a.jsonl",
        [{"prompt": "1+1", "answer": 2, "level": 1, "id": "x"}, "", {"prompt": chat, "answer": "4"}],
    )
    first, second = build({"jsonl": {"train": path}}).tasks("train")
    assert (first.id, first.prompt, first.answer, first.meta) == ("x", "1+1", 2, {"level": 1, "id": "x"})
    assert second.id.endswith("a.jsonl:3") and second.prompt == chat
    renamed = write(tmp_path / "b.jsonl", [{"q": "1+1", "gold": "2"}])
    assert build({"jsonl": {"train": renamed, "prompt": "q", "answer": "gold"}}).tasks("train")[0].answer == "2"


def test_jsonl_splits_are_disjoint(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} + 1", "answer": i + 1} for i in range(200)]
    path = write(tmp_path / "a.jsonl", rows + rows[:50])  # copies stay together
    tasks = disjoint_splits(build({"jsonl": {"train": path, "valid_share": 0.2, "test_share": 0.2}}))
    assert sum(map(len, tasks.values())) == 250 and min(map(len, tasks.values())) > 20
    other = write(tmp_path / "b.jsonl", [rows[7]])
    with pytest.raises(UserError, match=r"a.jsonl:8: prompt: is in .*b.jsonl:1 too"):
        build({"jsonl": {"train": path, "test": other}}).tasks("train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": 1}, "a.jsonl:1: prompt: is missing"),
        ({"prompt": "x", "answer": None}, "a.jsonl:1: answer: is missing"),
        ({"prompt": 3, "answer": 1}, "a.jsonl:1: prompt: must be text or"),
        ({"prompt": "  ", "answer": 1}, "a.jsonl:1: prompt: is empty"),
        ({"prompt": [], "answer": 1}, "non-empty"),
        ({"prompt": [{"role": "user"}], "answer": 1}, "message 0 must have"),
        ({"prompt": [{"role": "user", "content": 3}], "answer": 1}, "content of message 0"),
    ],
)
def test_an_error_about_a_jsonl_row_names_the_field(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build({"jsonl": {"train": write(tmp_path / "a.jsonl", [row])}}).tasks("train")


def test_missing_files_splits_and_tasks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "x", "answer": 1}])
    source = build({"jsonl": {"train": path}})
    with pytest.raises(UserError, match="2 tasks were requested and there are 1"):
        source.tasks("train", 2)
    with pytest.raises(UserError, match=r"'test'.*no such split"):
        source.tasks("test")
    with pytest.raises(UserError, match=r"no.jsonl"):
        build({"jsonl": {"train": str(tmp_path / "no.jsonl")}}).tasks("train")
    (tmp_path / "cut.jsonl").write_bytes('{"prompt": "né'.encode()[:-1])
    with pytest.raises(UserError, match=r"cut.jsonl:1"):
        build({"jsonl": {"train": str(tmp_path / "cut.jsonl")}}).tasks("train")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"empty.jsonl"):
        build({"jsonl": {"train": str(tmp_path / "empty.jsonl")}}).tasks("train")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gms8k", "did you mean 'gsm8k'"),
        ({"gsm8k": {"trian": "x"}}, "tasks.trian: unknown key, did you mean 'train'"),
        ({"gsm8k": {}}, "tasks.train: Field required"),
        ({"gsm8k": {"train": "x", "prompt": "no placeholder"}}, "must contain {question}"),
        ({"gsm8k": {"train": "x", "valid_share": 1.0}}, "less than 1"),
        ({"jsonl": {"train": "x", "test": "y", "test_share": 0.1}}, "a file or a share"),
        ({"gym": {"name": "chain_sum", "config": {"seed": 1}}}, "seed and size"),
    ],
)
def test_a_wrong_recipe_raises_an_error_naming_the_field(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(spec)


def test_the_chain_world_is_a_task_source() -> None:
    source = build({"chain": {"steps": [2, 3]}})
    tasks = disjoint_splits(source, 40)
    assert all(judge({"exact": {"marker": "#"}}, t, f"# {t.answer}") == 1.0 for t in tasks["test"])
    assert all(judge({"exact": {"marker": "#"}}, t, f"# 1 # {t.answer}") == 0.0 for t in tasks["test"])
    with pytest.raises(UserError, match="did you mean 'steps'"):
        build({"chain": {"stesp": [2, 3]}})


# ------------------------------------------------------------ reasoning-gym

SUMS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}


@needs_gym
def test_gym_tasks_are_deterministic_and_distinct_and_their_splits_disjoint() -> None:
    spec = {"gym": {"name": "chain_sum", "config": SUMS, "prompt": "{expression} =", "size": 60}}
    tasks = disjoint_splits(build(spec))
    assert {k: len(v) for k, v in tasks.items()} == {"train": 60, "valid": 60, "test": 60}
    assert build(spec).tasks("test", 20) == tasks["test"][:20]
    assert len({t.prompt for t in tasks["train"]}) == 60
    other = build({"gym": {**spec["gym"], "seed": 1}})  # the split of a question does not depend on the seed
    assert not {t.prompt for t in other.tasks("test")} & {t.prompt for t in tasks["train"]}


@needs_gym
def test_gym_answers_are_scored_by_reasoning_gym() -> None:
    tasks = build({"gym": {"name": "chain_sum", "config": SUMS}}).tasks("valid", 5)
    reward = build_reward("gym")

    def scores(texts: list[str]) -> list[float]:
        group = [Rollout(t, [0, 1], [False, True], [0.0, 0.0], x, "eos") for t, x in zip(tasks, texts, strict=True)]
        judged = reward(group)
        assert all(isinstance(o, Score) for o in judged), judged
        return [o.value for o in judged if isinstance(o, Score)]

    assert scores([f"<thinking>so</thinking> {t.answer}" for t in tasks]) == [1.0] * 5
    assert scores([f"{t.answer}.00" for t in tasks]) == [1.0] * 5  # the scorer of chain_sum compares numbers
    assert scores([f"{t.answer}1" for t in tasks]) == [0.0] * 5
    assert scores(["<thinking>" + t.answer for t in tasks]) == [0.0] * 5
    assert judge("math", tasks[0], tasks[0].answer) == 1.0


@needs_gym
def test_gym_errors() -> None:
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(UserError, match=r"about 1[0-9]{2} different tasks in 'train', not 1000"):
        build({"gym": {"name": "chain_sum", "config": small}}).tasks("train")
    with pytest.raises(UserError, match="did you mean 'chain_sum'"):
        build({"gym": {"name": "chain_sums"}}).tasks("train", 1)
    with pytest.raises(UserError, match="reasoning-gym rejects it"):
        build({"gym": {"name": "chain_sum", "config": {"terms": 3}}}).tasks("train", 1)
    with pytest.raises(UserError, match="has no 'expresion'"):
        build({"gym": {"name": "chain_sum", "prompt": "{expresion}"}}).tasks("train", 1)
