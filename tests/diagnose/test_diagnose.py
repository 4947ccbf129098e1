"""The alarms: each fires on what it is for, once, and stays silent on what looks like it and is well."""

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
from ladder.diagnose.series import Series
from ladder.diagnose.watch import Watch, replay
from ladder.report import page

N = 24


def rows(**curves: Any) -> list[dict[str, Any]]:
    """Steps 1 .. N; a curve is a number, a function of the place in [0, 1], or a list."""
    at = np.linspace(0, 1, N)
    made = {name: [c(x) for x in at] if callable(c) else [c] * N for name, c in curves.items()}
    return [{"step": i + 1} | {name: float(x[i]) for name, x in made.items()} for i in range(N)]


def noisy(curve: Any, size: float) -> Any:
    draw = np.random.default_rng(3)
    return lambda x: curve(x) + size * draw.normal()


def fired(steps: list[dict[str, Any]], **alarms: Any) -> dict[str, int]:
    """Alarms and their steps."""
    watch = Watch(Alarms(**alarms))
    return {f.name: f.step for row in steps for f in watch.step(row["step"], row, [])}


def rise(x: float) -> float:
    return x


def fall(x: float) -> float:
    return 1 - x


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gold falls, reward climbs": ("proxy_and_gold", {"reward/mean": rise, "watched/gold": fall}),
    "gold falls from its best": (
        "proxy_and_gold",
        {"reward/mean": rise, "watched/gold": noisy(lambda x: 1 - (x - 0.4) ** 2, 0.01)},
    ),
    "far from the reference": ("kl", {"kl/response": lambda x: 80 * x}),
    "far from the base": ("kl", {"kl_base": lambda x: 2 * x, "length/mean": 40}),
    "length is paid": ("length_drift", {"length/mean": lambda x: 10 + 30 * x, "reward/length_r2": 0.97}),
    "shortness is paid": ("length_drift", {"length/mean": lambda x: 30 - 20 * x, "reward/length_r2": 0.97}),
    "length is paid, and has not moved": ("length_drift", {"length/mean": 40, "reward/length_r2": 0.99}),
    "into the limit": ("length_drift", {"length/mean": lambda x: 30 + 30 * x, "truncated": lambda x: 0.8 * x}),
    "one answer for all": ("collapse", {"answers/distinct": lambda x: 4 * (1 - x) + 0.05, "entropy": fall}),
    "no signal": ("no_signal", {"groups/no_signal": 0.96, "reward/mean": 0.02, "reward/max": 1.0}),
    "stuttering": ("repetition", {"answers/repeated": lambda x: 0.1 + 0.7 * x}),
    "another sampler": ("mismatch", {"first/ratio/approx_kl": 0.05}),
    "wild steps": ("clipping", {"ratio/clipped": lambda x: x}),
}
HEALTHY: dict[str, dict[str, Any]] = {
    "longer because it works": {
        "length/mean": lambda x: 6 + 16 * x, "reward/length_r2": lambda x: 0.6 * (1 - x), "reward/mean": rise,
        "watched/held": rise, "truncated": 0.0,
    },
    "gold wavers": {"reward/mean": rise, "watched/gold": noisy(lambda x: 0.5, 0.03)},
    "both fall together": {"reward/mean": fall, "watched/gold": fall},
    "all is solved": {
        "groups/no_signal": lambda x: min(1.0, 2 * x), "reward/mean": lambda x: min(1.0, 0.1 + 2 * x),
        "reward/max": 1.0, "entropy": lambda x: 0.6 * (1 - x) + 0.01, "answers/distinct": lambda x: 4 - 3 * x,
    },
    "cut off from the start": {"length/mean": 40, "truncated": 1.0},
    "length tells something": {"length/mean": lambda x: 40 + 5 * x, "reward/length_r2": 0.9},
    "few texts from the start": {"answers/distinct": 0.4},
    "near": {"kl/response": lambda x: 40 * x},
    "nothing is known": {},
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_each_alarm_fires(case: str) -> None:
    name, curves = FAULTS[case]
    assert list(fired(rows(**curves))) == [name]
    assert fired(rows(**curves), off=[name]) == {}


def test_every_alarm_has_a_case() -> None:
    assert {name for name, _ in FAULTS.values()} == set(DETECTORS)


@pytest.mark.parametrize("case", HEALTHY)
def test_what_is_well_is_silent(case: str) -> None:
    assert fired(rows(**HEALTHY[case])) == {}


def test_an_alarm_is_early() -> None:
    """The check falls by 2 points a step: it fires before it has lost 20."""
    step = fired(rows(**{"reward/mean": rise, "watched/gold": noisy(lambda x: 0.95 - 0.02 * (N - 1) * x, 0.01)}))
    assert step["proxy_and_gold"] <= 8


def test_the_error_that_was_measured_counts() -> None:
    """The same fall by 0.3 is an alarm when a step's own error is 0.01, and none when it is 0.1."""
    check = {"reward/mean": rise, "watched/gold": lambda x: 0.9 - 0.3 * (x > 0.7)}
    assert "proxy_and_gold" in fired(rows(**check, **{"watched_error/gold": 0.01}))
    assert fired(rows(**check, **{"watched_error/gold": 0.1})) == {}


def test_a_step_that_was_not_judged_silences_nothing() -> None:
    steps = rows(**{"reward/mean": rise, "watched/gold": fall})
    whole = fired(steps)["proxy_and_gold"]
    for missing in (None, float("nan")):
        holed = [{**r, "watched/gold": missing} if r["step"] == 3 else r for r in steps]
        assert whole <= fired(holed)["proxy_and_gold"] <= whole + 1


def test_a_corrected_sampler_is_seen_by_its_own_figure() -> None:
    assert fired(rows(**{"mismatch/kl": 0.5, "first/ratio/approx_kl": 0.0})) == {"mismatch": 3}


def test_a_collapse_after_a_narrow_start() -> None:
    assert "collapse" in fired(rows(**{"answers/distinct": lambda x: 0.2 if x < 0.1 else 1.0 if x < 0.6 else 0.02}))


def test_two_long_failures_do_not_make_length_the_reward() -> None:
    some = [rollout(str(i), [5] * (60 if i < 2 else 8), i % 8) for i in range(64)]
    assert "reward/length_r2" not in answers.figures(some, [Score(float(i >= 2)) for i in range(64)])
    assert answers.figures(some, [Score(float(i >= 32)) for i in range(64)])["reward/length_r2"] < 0.1


def test_bounds_are_the_recipes() -> None:
    assert fired(rows(**{"kl/response": lambda x: 40 * x}), kl=20) == {"kl": 14}
    with pytest.raises(ValidationError, match="no alarm is called 'lenght_drift', did you mean 'length_drift'"):
        Alarms(stop=("lenght_drift",))


def test_noise_does_not_see_the_trend() -> None:
    found = Series(rows(a=noisy(lambda x: 100 * x, 0.5)), "a")
    assert 0.3 < found.noise < 0.7
    assert Series(rows(a=lambda x: 100 * x), "a").noise == pytest.approx(0, abs=1e-9)
    assert Series([{"step": 1, "a": 2.0}, {"step": 2, "a": None}], "a").curve == [(1, 2.0)]


def rollout(text: str, tokens: list[int], group: int) -> Rollout:
    drawn = [1, *tokens]
    mask, logps = [False] + [True] * len(tokens), [0.0] * len(drawn)
    return Rollout(Task("t", "q", None), drawn, mask, logps, text, "eos", group, 0)


def test_figures_of_answers_by_hand() -> None:
    """Two prompts, three texts; grams of 1 2 1 2 1 2 1: four of length 4, two of them new."""
    some = [
        rollout("a", [1, 2, 1, 2, 1, 2, 1], 0), rollout("b", [1, 2], 0), rollout("b", [1, 2, 3, 4], 1),
        rollout("c", [5, 6, 7, 8, 9], 1),
    ]  # fmt: skip
    found = answers.figures(some, [Score(7.0), Score(2.0), Score(4.0), Invalid("x")])
    assert found == pytest.approx(
        {"answers/distinct": 1.5, "answers/repeated": 0.5 / 4, "reward/max": 7.0, "reward/length_r2": 1.0}
    )
    assert "reward/length_r2" not in answers.figures(some, [Score(1.0)] * 4), "equal rewards tell nothing"


def test_a_finding_survives_json() -> None:
    finding = Finding("kl", 3, "says", "next", {"KL": [(1, 0.5), (2, 1.0)]}, ("a", "b"))
    assert Finding.of(json.loads(json.dumps(finding.record()))) == finding


# ---------------------------------------------------------------- in a run

HACK = "def paid(completions, **_):\n    return [len(t.split()) / 30 for t in completions]\n"


@pytest.fixture(scope="module")
def hacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run whose reward pays for length and which asks to be stopped, and what it raised."""
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


def test_a_run_stops_when_it_was_asked_to(hacked: tuple[Path, str]) -> None:
    root, said = hacked
    (row,) = [r for r in read_lines(root / "out" / "rl" / "findings.jsonl") if r["name"] == "length_drift"]
    assert f"stopped after step {row['step']} because of length_drift" in said and "rl.alarms.stop" in said
    assert row["step"] < 40 and len(row["texts"]) == 2 and len(row["texts"][1]) > len(row["texts"][0])
    assert (root / "out" / "rl" / "checkpoints").exists()


def test_the_files_tell_what_the_run_told(hacked: tuple[Path, str]) -> None:
    stage = hacked[0] / "out" / "rl"
    assert [f.record() for f in replay(stage, Alarms())] == [
        Finding.of(r).record() for r in read_lines(stage / "findings.jsonl")
    ]


def test_the_command_says_it_again(hacked: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose_run(hacked[0] / "out", as_json=False) is True
    said = " ".join(capsys.readouterr().out.split())
    assert "length_drift at step" in said and "next: read the two answers" in said
    diagnose_run(hacked[0] / "out", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [f["name"] for f in told["rl"]] == [r["name"] for r in read_lines(hacked[0] / "out/rl/findings.jsonl")]


def test_the_report_shows_it(hacked: tuple[Path, str]) -> None:
    html = page.write(hacked[0] / "out").read_text()
    assert "Findings of the alarms" in html and "of what tells their rewards apart is their length" in html


def test_the_same_command_goes_on_and_no_alarm_fires_twice(hacked: tuple[Path, str]) -> None:
    root, _ = hacked
    said = small_run.run(root / "out", recipe=root / "hack.yaml").text
    assert "goes on after step" in said
    names = [r["name"] for r in read_lines(root / "out" / "rl" / "findings.jsonl")]
    assert names.count("length_drift") == 1 and len(set(names)) == len(names)
    assert (root / "out" / "rl" / "summary.json").exists()
