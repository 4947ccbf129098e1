"""The alarms: each fires once on its fault, and stays silent on healthy runs with similar figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import small_run
from ladder.base.errors import UserError
from ladder.base.jsonl import read_lines
from ladder.commands.diagnose import diagnose_run
from ladder.contract.rollouts import Invalid, Rollout, Score, Task
from ladder.diagnose import answers
from ladder.diagnose.detectors import DETECTORS, Alarms
from ladder.diagnose.finding import Finding
from ladder.diagnose.series import History, Series
from ladder.diagnose.watch import Watch, replay
from ladder.report import page

N = 24


def step_records(**curves: Any) -> list[dict[str, Any]]:
    """The records of steps 1 .. N. curves: name to a constant, or to a function of the progress in [0, 1]."""
    progress = np.linspace(0, 1, N)
    values = {name: [c(x) for x in progress] if callable(c) else [c] * N for name, c in curves.items()}
    return [{"step": i + 1} | {name: float(x[i]) for name, x in values.items()} for i in range(N)]


def noisy(curve: Any, size: float) -> Any:
    rng = np.random.default_rng(3)
    return lambda x: curve(x) + size * rng.normal()


def fired(records: list[dict[str, Any]], **alarms: Any) -> dict[str, int]:
    """The alarms that fire, by name, with the step of each."""
    watch = Watch(Alarms(**alarms))
    return {f.name: f.step for record in records for f in watch.step(record["step"], record, [])}


def rise(x: float) -> float:
    return x


def fall(x: float) -> float:
    return 1 - x


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gold reward falls, trained reward climbs": ("proxy_and_gold", {"reward/mean": rise, "watched/gold": fall}),
    "gold reward falls from its best": (
        "proxy_and_gold",
        {"reward/mean": rise, "watched/gold": noisy(lambda x: 1 - (x - 0.4) ** 2, 0.01)},
    ),
    "far from the reference": ("kl", {"kl/response": lambda x: 80 * x}),
    "far from the base": ("kl", {"kl_base": lambda x: 2 * x, "length/mean": 40}),
    "length is rewarded": ("length_drift", {"length/mean": lambda x: 10 + 30 * x, "reward/length_r2": 0.97}),
    "brevity is rewarded": ("length_drift", {"length/mean": lambda x: 30 - 20 * x, "reward/length_r2": 0.97}),
    "length is rewarded, and has not changed": ("length_drift", {"length/mean": 40, "reward/length_r2": 0.99}),
    "answers run into the token limit": (
        "length_drift",
        {"length/mean": lambda x: 30 + 30 * x, "truncated": lambda x: 0.8 * x},
    ),
    "one answer to all prompts": ("collapse", {"answers/distinct": lambda x: 4 * (1 - x) + 0.05, "entropy": fall}),
    "no signal": ("no_signal", {"groups/no_signal": 0.96, "reward/mean": 0.02, "reward/max": 1.0}),
    "repetition": ("repetition", {"answers/repeated": lambda x: 0.1 + 0.7 * x}),
    "the sampler has other weights": ("mismatch", {"first/ratio/approx_kl": 0.05}),
    "steps too large": ("clipping", {"ratio/clipped": lambda x: x}),
}
HEALTHY: dict[str, dict[str, Any]] = {
    "longer answers are better": {
        "length/mean": lambda x: 6 + 16 * x, "reward/length_r2": lambda x: 0.6 * (1 - x), "reward/mean": rise,
        "watched/held": rise, "truncated": 0.0,
    },
    "gold reward is noisy": {"reward/mean": rise, "watched/gold": noisy(lambda x: 0.5, 0.03)},
    "both rewards fall": {"reward/mean": fall, "watched/gold": fall},
    "all tasks are solved": {
        "groups/no_signal": lambda x: min(1.0, 2 * x), "reward/mean": lambda x: min(1.0, 0.1 + 2 * x),
        "reward/max": 1.0, "entropy": lambda x: 0.6 * (1 - x) + 0.01, "answers/distinct": lambda x: 4 - 3 * x,
    },
    "truncated from the start": {"length/mean": 40, "truncated": 1.0},
    "length correlates with the reward": {"length/mean": lambda x: 40 + 5 * x, "reward/length_r2": 0.9},
    "few distinct answers from the start": {"answers/distinct": 0.4},
    "near the reference": {"kl/response": lambda x: 40 * x},
    "no figures": {},
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_each_alarm_fires(case: str) -> None:
    name, curves = FAULTS[case]
    assert list(fired(step_records(**curves))) == [name]
    assert fired(step_records(**curves), off=[name]) == {}


def test_every_alarm_has_a_case() -> None:
    assert {name for name, _ in FAULTS.values()} == set(DETECTORS)


@pytest.mark.parametrize("case", HEALTHY)
def test_no_alarm_fires_on_a_healthy_run(case: str) -> None:
    assert fired(step_records(**HEALTHY[case])) == {}


def test_proxy_and_gold_fires_early() -> None:
    """The watched reward falls by 2 points per step: the alarm fires before it has lost 20."""
    falling = noisy(lambda x: 0.95 - 0.02 * (N - 1) * x, 0.01)
    steps = fired(step_records(**{"reward/mean": rise, "watched/gold": falling}))
    assert steps["proxy_and_gold"] <= 8


def test_proxy_and_gold_uses_the_measured_standard_error() -> None:
    """The same fall by 0.3 is an alarm when a step's standard error is 0.01, and none when it is 0.1."""
    curves = {"reward/mean": rise, "watched/gold": lambda x: 0.9 - 0.3 * (x > 0.7)}
    assert "proxy_and_gold" in fired(step_records(**curves, **{"watched_error/gold": 0.01}))
    assert fired(step_records(**curves, **{"watched_error/gold": 0.1})) == {}


def test_a_step_without_a_watched_reward_does_not_silence_the_alarm() -> None:
    records = step_records(**{"reward/mean": rise, "watched/gold": fall})
    step = fired(records)["proxy_and_gold"]
    for missing in (None, float("nan")):
        incomplete = [{**r, "watched/gold": missing} if r["step"] == 3 else r for r in records]
        assert step <= fired(incomplete)["proxy_and_gold"] <= step + 1


def test_mismatch_prefers_the_figure_of_an_importance_correction() -> None:
    assert fired(step_records(**{"mismatch/kl": 0.5, "first/ratio/approx_kl": 0.0})) == {"mismatch": 3}


def test_collapse_after_a_start_with_few_distinct_answers() -> None:
    curves = {"answers/distinct": lambda x: 0.2 if x < 0.1 else 1.0 if x < 0.6 else 0.02}
    assert "collapse" in fired(step_records(**curves))


def test_length_r2_is_left_out_when_two_long_failures_make_all_the_variance() -> None:
    rollouts = [rollout(str(i), [5] * (60 if i < 2 else 8), i % 8) for i in range(64)]
    assert "reward/length_r2" not in answers.figures(rollouts, [Score(float(i >= 2)) for i in range(64)])
    assert answers.figures(rollouts, [Score(float(i >= 32)) for i in range(64)])["reward/length_r2"] < 0.1


def test_thresholds_come_from_the_recipe() -> None:
    assert fired(step_records(**{"kl/response": lambda x: 40 * x}), kl=20) == {"kl": 14}
    with pytest.raises(ValidationError, match="no alarm is called 'lenght_drift', did you mean 'length_drift'"):
        Alarms(stop=("lenght_drift",))


def test_noise_ignores_the_trend() -> None:
    series = Series(History(step_records(a=noisy(lambda x: 100 * x, 0.5))), "a")
    assert 0.3 < series.noise < 0.7
    assert Series(History(step_records(a=lambda x: 100 * x)), "a").noise == pytest.approx(0, abs=1e-9)
    assert Series(History([{"step": 1, "a": 2.0}, {"step": 2, "a": None}]), "a").curve == [(1, 2.0)]


def rollout(text: str, tokens: list[int], group: int) -> Rollout:
    all_tokens = [1, *tokens]
    mask, logps = [False] + [True] * len(tokens), [0.0] * len(all_tokens)
    return Rollout(Task("t", "q", None), all_tokens, mask, logps, text, "eos", group, 0)


def test_figures_of_answers_by_hand() -> None:
    """Two prompts, three distinct texts; 1 2 1 2 1 2 1 has four 4-grams, two of them repeated."""
    rollouts = [
        rollout("a", [1, 2, 1, 2, 1, 2, 1], 0), rollout("b", [1, 2], 0), rollout("b", [1, 2, 3, 4], 1),
        rollout("c", [5, 6, 7, 8, 9], 1),
    ]  # fmt: skip
    figures = answers.figures(rollouts, [Score(7.0), Score(2.0), Score(4.0), Invalid("x")])
    assert figures == pytest.approx(
        {"answers/distinct": 1.5, "answers/repeated": 0.5 / 4, "reward/max": 7.0, "reward/length_r2": 1.0}
    )
    assert "reward/length_r2" not in answers.figures(rollouts, [Score(1.0)] * 4), "equal rewards have no variance"


def test_a_finding_survives_json() -> None:
    finding = Finding("kl", 3, "says", "next", {"KL": [(1, 0.5), (2, 1.0)]}, ("a", "b"))
    assert Finding.of(json.loads(json.dumps(finding.record()))) == finding


# ---------------------------------------------------------------- in a run

HACK = "def paid(completions, **_):\n    return [len(t.split()) / 30 for t in completions]\n"


@pytest.fixture(scope="module")
def hacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a run whose reward pays for length and which stops on length_drift, and the error message."""
    root = tmp_path_factory.mktemp("alarms")
    (root / "hack.py").write_text(HACK)
    recipe = root / "hack.yaml"
    recipe.write_text(f"""
name: hack
threads: 1
model: {{source: "preset:chain"}}
task: chain
reward: chain
stages:
  pretrain: {{kind: pretrain, data: {{web: {{documents: 1500}}}}, batch: 600, by: tokens, optim: {{lr: 0.003}}}}
  rl:
    kind: rl
    from: pretrain
    steps: 40
    prompts_per_step: 8
    group_size: 8
    reward: {{user: {{function: "{root / "hack.py"}:paid"}}}}
    sampling: {{max_tokens: 40}}
    alarms: {{stop: [length_drift]}}
    optim: {{lr: 0.003}}
""")
    with pytest.raises(UserError) as error:
        small_run.run(root / "out", recipe=recipe)
    return root, str(error.value)


def test_a_run_stops_at_an_alarm_named_in_stop(hacked: tuple[Path, str]) -> None:
    root, message = hacked
    (row,) = [r for r in read_lines(root / "out" / "rl" / "findings.jsonl") if r["name"] == "length_drift"]
    assert f"stopped after step {row['step']} because of length_drift" in message and "rl.alarms.stop" in message
    assert row["step"] < 40 and len(row["texts"]) == 2 and len(row["texts"][1]) > len(row["texts"][0])
    assert (root / "out" / "rl" / "checkpoints").exists()


def test_replaying_the_files_gives_the_findings_of_the_run(hacked: tuple[Path, str]) -> None:
    stage = hacked[0] / "out" / "rl"
    assert [f.record() for f in replay(stage, Alarms())] == [
        Finding.of(r).record() for r in read_lines(stage / "findings.jsonl")
    ]


def test_the_diagnose_command_prints_the_findings(hacked: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose_run(hacked[0] / "out", as_json=False) is True
    output = " ".join(capsys.readouterr().out.split())
    assert "length_drift at step" in output and "next: read the two answers" in output
    diagnose_run(hacked[0] / "out", as_json=True)
    findings = json.loads(capsys.readouterr().out)
    assert [f["name"] for f in findings["rl"]] == [r["name"] for r in read_lines(hacked[0] / "out/rl/findings.jsonl")]


def test_the_report_shows_the_findings(hacked: tuple[Path, str]) -> None:
    html = page.write(hacked[0] / "out").read_text()
    assert "Findings of the alarms" in html and "of the variance of the rewards" in html


def test_a_resumed_run_continues_and_no_alarm_fires_twice(hacked: tuple[Path, str]) -> None:
    root, _ = hacked
    output = small_run.run(root / "out", recipe=root / "hack.yaml").text
    assert "goes on after step" in output
    names = [r["name"] for r in read_lines(root / "out" / "rl" / "findings.jsonl")]
    assert names.count("length_drift") == 1 and len(set(names)) == len(names)
    assert (root / "out" / "rl" / "summary.json").exists()
