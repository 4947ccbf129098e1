"""Rewards: extraction and comparison of answers, format, length, combination, and failures that are never scored 0."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest

from ladder.base.errors import UserError
from ladder.contract.rollouts import InfraError, Invalid, Outcome, Rollout, Score, Stop, Task
from ladder.rewards import (
    Combine,
    CosineLength,
    Exact,
    Format,
    Language,
    Length,
    LengthRange,
    Math,
    Notation,
    Overlong,
    Part,
    build,
    guard,
    parse_number,
)
from ladder.rewards.language import mixed, scripts
from ladder.rewards.text import split_thinking

needs_math = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs signal-ladder[math]")


def rollout(text: str, answer: object = "18", *, n: int = 2, stop: Stop = "eos", prompt: object = "p", **meta: object):
    tokens = [7, *range(n)]
    return Rollout(
        Task("t", prompt, answer, dict(meta)),  # type: ignore[arg-type]
        tokens,
        [False] + [True] * n,
        [0.0] * (n + 1),
        text,
        stop,
    )


def values(outcomes: list[Outcome]) -> list[float]:
    assert all(isinstance(o, Score) for o in outcomes), outcomes
    return [o.value for o in outcomes if isinstance(o, Score)]


def why(outcome: Outcome) -> str:
    assert not isinstance(outcome, Score)
    return outcome.why


# ------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        ("-18", -18),
        ("\u221218", -18),
        ("+18.", 18),
        ("1,234,567", 1234567),
        ("1{,}000", 1000),
        ("$18", 18),
        ("-$3.50", Fraction(-7, 2)),
        ("$-3.50", Fraction(-7, 2)),
        (r"\$18", 18),
        ("$18$", 18),
        (r"\(18\)", 18),
        ("**18**", 18),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"\dfrac{-3}{4}", Fraction(-3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        ("1e3", 1000),
        ("18%", 18),
        ("18 apples", 18),
        (r"18 \text{ cm}", 18),
        ("5 km/h", 5),
        ("５", 5),
    ],
)
def test_parse_number_is_exact(text: str, number: Fraction | int) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["", ".", "x", "1,00", "12,34", "1 2", "3/0", "+-5", "18 or 19", "18, 19", "18 apples, 2 pears", "5 million", "2x",
     "5½", "18 or more", "1.2.3", "18" * 100, "٣٤", "1/2/3", "#18", "nan", "inf"],
)  # fmt: skip
def test_parse_number_of_other_texts_is_none(text: str) -> None:
    assert parse_number(text) is None


def test_units_can_be_disallowed() -> None:
    assert parse_number("18 apples", units=False) is None and parse_number("18", units=False) == 18


# ------------------------------------------------------------ math

CORRECT = [
    "18",
    " 18.\n",
    "$18",
    "#### 18",
    "so 9 + 9 = 18\n#### 18",
    r"it is \boxed{18}",
    r"\boxed{\frac{36}{2}}",
    "<answer> 18 </answer>",
    "<thinking>3 + 4 = 7</thinking>18",
    "half of it</thinking>18.0 dollars",
    "#### 17\n#### 18",
    "<answer>17</answer> no: <answer>18</answer>",
]
WRONG = [
    "",
    "17",
    "1 2 3 4 5 18",
    "The answer is 18",
    "18 or 19",
    "#### 18 or 19",
    "#### 18\n#### 17",
    r"\boxed{18",
    r"\boxed{17} or 18",
    "<thinking>18",
    "<thinking>18</thinking>",
    "<thinking>18</thinking>17",
    "<thinking>a</thinking><thinking>18",
    "180",
    "1/18",
    "### 18",
    "<answer>18</answer> no: <answer>17</answer>",
]


def test_math_accepts_only_the_final_answer() -> None:
    assert values(Math()([rollout(t) for t in CORRECT])) == [1.0] * len(CORRECT)
    assert values(Math()([rollout(t) for t in WRONG])) == [0.0] * len(WRONG)


def test_the_last_number_counts_only_with_place_last() -> None:
    essay = rollout("First 3, then 4.5, so it is 1,018 in all.", "1018")
    assert values(Math()([essay])) == [0.0]
    assert values(Math(places=("last",))([essay])) == [1.0]
    assert values(Math(places=("last",))([rollout("it is 18x19 or x18")])) == [0.0]


def test_a_truncated_answer_is_wrong_unless_allowed() -> None:
    truncated = rollout("#### 18", stop="length")
    assert values(Math()([truncated])) == [0.0] and values(Math(finished=False)([truncated])) == [1.0]


def test_tolerance_is_relative_and_0_by_default() -> None:
    third = rollout("0.333", "1/3")
    assert values(Math()([third])) == [0.0]
    assert values(Math(tolerance=0.01)([third])) == [1.0]
    assert values(Math(tolerance=0.01)([rollout("-0.333", "1/3")])) == [0.0]


@pytest.mark.parametrize("gold", [18, 18.0, "18", "1,8", "working\n#### 18"])
def test_gold_answers_are_parsed_or_invalid(gold: object) -> None:
    (judged,) = Math()([rollout("18", gold)])
    assert isinstance(judged, Invalid) if gold == "1,8" else values([judged]) == [1.0]


@pytest.mark.parametrize("gold", [None, True, "eighteen", "", [18]])
def test_a_gold_answer_that_is_not_a_number_is_invalid(gold: object) -> None:
    assert isinstance(Math()([rollout("18", gold)])[0], Invalid)


# ------------------------------------------------------------ exact, format, length


def test_exact_normalises_only_as_configured() -> None:
    group = [
        rollout(t, "Paris")
        for t in ("Paris", " Paris\n", "paris", "Paris.", "It is Paris", "<thinking>x</thinking>Paris")
    ]
    assert values(Exact()(group)) == [1, 1, 0, 0, 0, 1]
    assert values(Exact(ignore_case=True, ignore_punctuation=True)(group)) == [1, 1, 1, 1, 0, 1]
    assert values(Exact(take="token")(group)) == [1, 1, 0, 0, 1, 1]
    assert values(Exact(take="line")([rollout("so:\nParis", "Paris")])) == [1]
    assert isinstance(Exact()([rollout("x", None)])[0], Invalid)


def test_a_marker_must_occur_exactly_once() -> None:
    assert values(Exact(marker="#")([rollout(t, "5") for t in ("1 2 # 5", "# 4 # 5", "5", "# 5 5")])) == [1, 0, 0, 0]


def test_format_accepts_only_well_formed_thinking() -> None:
    good = ["<thinking>a</thinking>b", "\n<thinking>\na\n</thinking>\nb\n"]
    bad = [
        "a", "<thinking>a</thinking>", "<thinking> </thinking>b", "</thinking>a<thinking>b", "x<thinking>a</thinking>b",
        "<thinking>a</thinking>b</thinking>", "<thinking><thinking>a</thinking>b", "<thinking>a",
        "<Thinking>a</Thinking>b", "<thinking>a</thinking>b<thinking>c</thinking>d",
    ]  # fmt: skip
    assert values(Format()([rollout(t) for t in good])) == [1.0] * len(good)
    assert values(Format()([rollout(t) for t in bad])) == [0.0] * len(bad)
    assert values(Format(opened=True)([rollout(t) for t in ("a</thinking>b", "<thinking>a</thinking>b")])) == [1, 0]
    assert values(Format()([rollout("<thinking>a</thinking>b", stop="length")])) == [0.0]
    assert split_thinking(" <thinking> a </thinking> b ") == ("a", "b")


def test_overlong_is_dapo_equation_13() -> None:
    reward = Overlong(max_tokens=100, cache=20)
    assert [reward.value(n) for n in (10, 80, 85, 90, 100, 500)] == [0, 0, -0.25, -0.5, -1, -1]
    assert values(reward([rollout("x", n=90)])) == [-0.5]


def test_length_ramps() -> None:
    linear, half_cosine = (
        Length(max_tokens=30, min_tokens=10, at_min=1, at_max=-1),
        Length(max_tokens=30, shape="cosine"),
    )
    assert [linear.value(n) for n in (0, 10, 15, 20, 30, 99)] == [1, 1, 0.5, 0, -1, -1]
    assert [half_cosine.value(n) for n in (0, 15, 30)] == pytest.approx([0, 0.5, 1])
    assert half_cosine.value(10) == pytest.approx(1 - 0.5 * (1 + math.cos(math.pi / 3)))
    assert values(LengthRange(max_tokens=5, min_tokens=2)([rollout("x", n=n) for n in (1, 2, 5, 6)])) == [0, 1, 1, 0]


def test_cosine_rewards_short_correct_and_long_wrong_answers() -> None:
    reward = CosineLength(Math(), max_tokens=100)
    group = [rollout(t, n=n) for t, n in (("18", 0), ("18", 50), ("7", 0), ("7", 50), ("18", 100))]
    assert values(reward(group)) == pytest.approx([2.0, 1.5, -10.0, -5.0, -10.0])
    assert isinstance(reward([rollout("18", "no number")])[0], Invalid)


# ------------------------------------------------------------ scripts


def test_notation_is_the_share_of_one_digit_script() -> None:
    texts = ["a 5 +1 6 b 6", "a 五 减一 四", "a 5 +1 6 b 六", "no digits"]
    assert values(Notation()([rollout(t) for t in texts])) == [1, 1, 0.75, 0]
    assert values(Notation(strict=True)([rollout(t) for t in texts])) == [1, 1, 0, 0]
    assert values(Notation(target="ascii", empty=1.0)([rollout(t) for t in texts])) == [1, 0, 0.75, 1]
    assert [mixed(t) for t in texts] == [False, False, True, False]
    assert scripts("٣ 3 ３", "digits") == {"arabic-indic": 1, "ascii": 1, "fullwidth": 1}


def test_language_counts_letters_of_the_thinking() -> None:
    text = "<thinking>so мы add</thinking>да"
    assert values(Language()([rollout(text)])) == [5 / 7]
    assert values(Language(target="cyrillic", where="answer")([rollout(text)])) == [1.0]
    assert values(Language(where="all")([rollout("ab漢字かカ")])) == [pytest.approx(1 / 3)]
    assert values(Language()([rollout("<thinking>never ends")])) == [1.0]


# ------------------------------------------------------------ combinations


def fixed(value: object):
    return guard(lambda group: [value] * len(group), f"r{value!r}"[:20])


def test_a_combination_is_the_weighted_sum_times_the_gates() -> None:
    reward = build([{"kind": "math"}, {"kind": "format", "weight": 0.5}, {"kind": "notation", "gate": True}])
    (score,) = reward([rollout("<thinking>5 六</thinking>18")])
    assert score == Score(1.5 * 0.75, {"math": 1.0, "format": 1.0, "notation": 0.75})
    assert values(build([{"format": {"gate": True}}])([rollout("18")])) == [0.0]


def test_a_failed_component_is_not_scored_0() -> None:
    parts = (Part(fixed(1.0)), Part(fixed(None)), Part(fixed(InfraError("down"))))
    assert Combine(parts[:1])([rollout("x")]) == [Score(1.0, {"r1.0": 1.0})]
    assert isinstance(Combine(parts[:2])([rollout("x")])[0], Invalid)
    assert Combine(parts)([rollout("x")]) == [InfraError("down")]


@pytest.mark.parametrize(
    "bad", [None, "1.0", float("nan"), float("inf"), -math.inf, 1e9, 10**400, [1.0], Score(math.nan)]
)
def test_guard_makes_unacceptable_values_invalid(bad: object) -> None:
    try:
        (judged,) = guard(lambda group: [bad], "mine")([rollout("x")])
    except OverflowError:
        pytest.fail("guard accepted an int too large for a float")
    assert isinstance(judged, Invalid) and "mine" in judged.why


def test_guard_on_a_wrong_count_and_on_an_exception() -> None:
    group = [rollout("x")] * 3
    assert [type(o) for o in guard(lambda g: [1.0], "mine")(group)] == [Invalid] * 3
    assert [type(o) for o in guard(lambda g: 1.0, "mine")(group)] == [Invalid] * 3
    judged = guard(lambda g: 1 / 0, "mine")(group)
    assert judged == [InfraError("mine: raised ZeroDivisionError: division by zero")] * 3
    assert isinstance(guard(lambda g: sys.exit(3), "mine")(group)[0], InfraError)
    assert guard(lambda g: [1, True, Score(2.0)], "mine")(group) == [
        Score(1.0, {"mine": 1.0}), Score(1.0, {"mine": 1.0}), Score(2.0)
    ]  # fmt: skip


# ------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mth", "did you mean 'math'"),
        ({"math": {"tolerence": 1.0}}, "reward.tolerence: unknown key, did you mean 'tolerance'"),
        ({"math": {"tolerance": "0.1"}}, "reward.tolerance: Input should be a valid number"),
        ({"math": {"finished": 1}}, "reward.finished"),
        ({"math": {"places": ["hash", "lsat"]}}, "reward.places.1"),
        ({"math": {"places": ["bare", "last"]}}, "'bare' last"),
        ({"math": {"places": []}}, "at least one"),
        ([], "no reward is given"),
        ([{"kind": "math"}, {"kind": "format", "weight": "x"}], r"reward\[1\].weight"),
        ([{"kind": "math"}, {"kind": "format", "gate": True, "weight": 0.5}], r"reward\[1\]: a gate"),
        (["math", "math"], "two rewards have the name 'math'"),
        ({"overlong": {"max_tokens": 5, "cache": 9}}, "cache must be between"),
        ({"overlong": {"cache": 9}}, "reward.max_tokens: Field required"),
        ({"cosine": {"max_tokens": 5}}, "reward.of"),
        ({"cosine": {"max_tokens": 5, "of": {"math": {"x": 1}}}}, r"reward.of.x: unknown key"),
        ({"cosine": {"max_tokens": 5, "of": "math", "right_shrot": 1}}, "did you mean 'right_short'"),
        (7, "not a reward"),
        ({"math": 7}, "must be a mapping"),
    ],
)
def test_a_wrong_recipe_raises_an_error_naming_the_field(spec: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(spec)  # type: ignore[arg-type]


def test_every_notation_of_a_recipe_builds_the_same_reward() -> None:
    group = [rollout("#### 18"), rollout("17")]
    for spec in ("math", {"math": {}}, {"math": None}, {"kind": "math"}, ["math"], [{"math": {}}]):
        assert values(build(spec)(group)) == [1.0, 0.0]
    combined = build({"math": {}, "format": {"weight": 0.5}})
    assert values(combined([rollout("<thinking>a</thinking>18")])) == [1.5]
    assert values(build({"cosine": {"max_tokens": 100, "of": "math"}})([rollout("18", n=0)])) == [2.0]


# ------------------------------------------------------------ users' functions in a child process

FUNCTIONS = """
import os, sys, time
def trl(completions, answer, **kwargs):
    return [float(c == a) for c, a in zip(completions, answer)]
def trl_all(prompts, completions, completion_ids, level, **kwargs):
    return [len(p) + 10 * len(i) + 100 * l for p, i, l in zip(prompts, completion_ids, level)]
def trl_chat(prompts, completions):
    expected = {"role": "assistant", "content": "18"}
    return [float(p[-1]["role"] == "user" and c == [expected]) for p, c in zip(prompts, completions)]
async def trl_async(completions, **kwargs):
    return [1.0 for _ in completions]
def trl_state(completions, trainer_state): return [0.0]
def trl_none(completions, **kwargs): return [None, 1.0]
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth), "acc": extra_info["level"], "pred": solution_str}
def verl_plain(data_source, solution_str, ground_truth, extra_info): return 1.0 if data_source == "mine" else 0.0
def verl_extra(solution_str, ground_truth, bonus=0.0): return bonus
def verl_unknown(solution_str, ground_truth, teacher): return 0.0
def verl_fragile(solution_str, ground_truth):
    if solution_str == "hang": time.sleep(60)
    if solution_str == "die": os._exit(9)
    if solution_str == "raise": raise KeyError("gone")
    return 1.0
def ours(group): return [{"score": a.length, "long": a.stop == "length"} for a in group]
def unknown(x, y): return 0.0
def noisy(completions, **kwargs):
    print('{"id": 1, "results": []}', flush=True); os.write(1, b"noise"); sys.stdin.read()
    return [1.0] * len(completions)
def bad(group):
    mode = group[0].text
    if mode == "raise": raise ValueError("no")
    if mode == "exit": sys.exit(0)
    if mode == "die": os._exit(0)
    if mode == "kill": os.kill(os.getpid(), 9)
    if mode == "hang": print("thinking hard", file=sys.stderr, flush=True); time.sleep(60)
    if mode == "deaf":
        import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True: pass
    if mode == "fork":
        if os.fork() == 0: return [0.0] * 2  # the fork must not reply to the parent
        time.sleep(0.2)
    if mode == "memory": bytearray(8 << 30)
    return {"nan": [float("nan")] * 2, "none": [None] * 2, "str": ["1"] * 2, "short": [1.0], "long": [1.0] * 3,
            "huge": [1e9] * 2, "hugest": [10**400] * 2, "scalar": 1.0, "dict": [{"acc": 1}] * 2, "list": [[1.0]] * 2,
            "fork": [1.0] * 2, "ok": [1.0] * 2}[mode]
not_callable = 3
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(FUNCTIONS)
    return path


def user(path: Path, function: str, **options: object):
    return build({"kind": "user", "function": f"{path}:{function}", **options})


def test_trl_functions_work_unchanged(functions: Path) -> None:
    group = [rollout("18"), rollout("17")]
    assert user(functions, "trl")(group) == [Score(1.0, {"user": 1.0}), Score(0.0, {"user": 0.0})]
    assert values(user(functions, "trl_all")([rollout("x", n=3, prompt="four", level=2)])) == [4 + 30 + 200]
    chat = rollout("18", prompt=[{"role": "user", "content": "?"}])
    assert values(user(functions, "trl_chat")([chat])) == [1.0]
    assert values(user(functions, "trl_async")(group)) == [1.0, 1.0]
    none, one = user(functions, "trl_none")(group)
    assert isinstance(none, Invalid) and values([one]) == [1.0]
    missing = user(functions, "trl_all")(group)[0]  # the tasks have no column `level`
    assert isinstance(missing, InfraError) and "level" in missing.why


def test_verl_functions_work_unchanged(functions: Path) -> None:
    group = [rollout("18", level=3), rollout("17", level=4)]
    assert user(functions, "compute_score", name="v")(group) == [
        Score(1.0, {"v": 1.0, "v/acc": 3.0}), Score(0.0, {"v": 0.0, "v/acc": 4.0})
    ]  # fmt: skip
    assert values(user(functions, "verl_plain")([rollout("x", data_source="mine"), rollout("x")])) == [1.0, 0.0]
    assert values(user(functions, "verl_extra", kwargs={"bonus": 0.5})(group)) == [0.5, 0.5]


def test_our_own_signature(functions: Path) -> None:
    assert user(functions, "ours")([rollout("x", n=5, stop="length")]) == [Score(5.0, {"user": 5.0, "user/long": 1.0})]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown", r"match none of the known signatures: TRL's .* verl's .* f\(group\)"),
        ("trl_state", "trainer_state"),
        ("verl_unknown", "teacher"),
        ("nothing", "has no function 'nothing'"),
        ("not_callable", "not a function"),
    ],
)
def test_a_function_that_cannot_be_used_raises_a_user_error(functions: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        user(functions, name)


@pytest.mark.parametrize("target", ["nowhere.mod:fn", "nofile.py:fn", "json", "json:nothing"])
def test_a_missing_target_raises_a_user_error(target: str) -> None:
    with pytest.raises(UserError, match="reward: the reward function"):
        build({"user": {"function": target}})


def test_a_module_that_fails_on_import_raises_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import os\ndef fn(group): pass\nos._exit(5)")
    (tmp_path / "typo.py").write_text("def fn(group:\n")
    with pytest.raises(UserError, match="exited with status 5"):
        user(tmp_path / "broken.py", "fn")
    with pytest.raises(UserError, match="SyntaxError"):
        user(tmp_path / "typo.py", "fn")


def test_a_failing_function_is_never_scored(functions: Path) -> None:
    """Each failure gives its reason, in bounded time, and the next call is judged as before."""
    reward = user(functions, "bad", deadline_s=2.0, memory_mb=1024)
    ok = [rollout("ok")] * 2
    expected: dict[str, tuple[type, str]] = {
        "raise": (InfraError, "raised mine.py:31: ValueError: no"),
        "exit": (InfraError, "SystemExit"),
        "die": (InfraError, "exited with status 0"),
        "kill": (InfraError, "SIGKILL"),
        "hang": (InfraError, r"longer than 2 s and was killed (it had printed: thinking hard)"),
        "deaf": (InfraError, "longer than 2 s"),
        "memory": (InfraError, "MemoryError"),
        "nan": (Invalid, "nan"),
        "none": (Invalid, "None"),
        "str": (Invalid, "'1' (str), not a number"),
        "list": (Invalid, "(list), not a number"),
        "short": (Invalid, "1 values for 2 answers"),
        "long": (Invalid, "3 values for 2 answers"),
        "huge": (Invalid, "more than"),
        "hugest": (Invalid, "not a number"),
        "scalar": (Invalid, "float, not a list"),
        "dict": (Invalid, "without 'score'"),
    }
    for mode, (kind, reason) in expected.items():
        start = time.monotonic()
        judged = reward([rollout(mode)] * 2)
        assert [type(o) for o in judged] == [kind] * 2, (mode, judged)
        assert reason in why(judged[0]), (mode, judged)
        assert [type(o) for o in reward.inner([rollout("short")] * 2)] == [Invalid] * 2  # also without the guard
        assert values(reward(ok)) == [1.0, 1.0], mode
        assert time.monotonic() - start < 40.0, mode  # it would hang for 60 s; a busy machine needs some for a child


def test_a_function_that_forks_sends_one_reply(functions: Path) -> None:
    reward = user(functions, "bad", deadline_s=5.0)
    for mode in ("fork", "ok", "fork", "ok"):
        assert values(reward([rollout(mode)] * 2)) == [1.0, 1.0]


def test_what_a_function_prints_does_not_reach_the_pipe(functions: Path) -> None:
    assert values(user(functions, "noisy", deadline_s=5.0)([rollout("x")] * 3)) == [1.0] * 3


def test_with_verls_signature_one_failure_affects_one_answer(functions: Path) -> None:
    reward = user(functions, "verl_fragile", deadline_s=2.0)
    judged = reward([rollout(t) for t in ("a", "hang", "b", "die", "c", "raise", "d")])
    assert [type(o).__name__ for o in judged] == [
        "Score",
        "InfraError",
        "Score",
        "InfraError",
        "Score",
        "InfraError",
        "Score",
    ]


def test_one_child_serves_all_calls(functions: Path) -> None:
    reward = user(functions, "ours")
    for _ in range(3):
        assert values(reward([rollout("x", n=2)])) == [2.0]
    assert reward.inner.child.starts == 1


def test_a_hanging_child_exits_with_its_parent(functions: Path) -> None:
    """The parent is killed while the function loops; the child must exit, though it reads no request meanwhile."""
    script = f"""
import json, os, subprocess, sys
worker = [sys.executable, "-P", "-m", "ladder.rewards.worker"]
child = subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
def ask(message): child.stdin.write(json.dumps(message).encode() + b"\\n"); child.stdin.flush()
ask({{"id": 0, "target": {f"{functions}:bad"!r}, "memory_mb": 0, "kwargs": {{}}}})
child.stdout.readline()
ask({{"id": 1, "items": [{{"text": "deaf", "task": {{}}}}]}})
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    script = script.replace("\\\\n", "\\n")
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    stat = Path(f"/proc/{int(process.stdout)}/stat")
    for _ in range(300):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(int(process.stdout), 9)
    pytest.fail("the child outlived its parent")


def test_the_worker_imports_nothing_heavy() -> None:
    code = "import sys, ladder.rewards.worker; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


# ------------------------------------------------------------ math-verify


@needs_math
def test_symbolic_equality_and_its_deadline() -> None:
    reward = build({"symbolic": {"deadline_s": 5.0}})
    pairs = {
        (r"\boxed{x+1}", "1+x"): 1.0,
        (r"\boxed{x+1}", "1+y"): 0.0,
        (r"\boxed{0.5}", r"\frac12"): 1.0,
        (r"#### (0,1]", "(0,1]"): 1.0,
        (r"#### (0,1)", "(0,1]"): 0.0,
        ("#### )(", "3"): 0.0,
        ("<thinking>3", "3"): 0.0,
    }
    group = [rollout(text, gold) for text, gold in pairs]
    assert values(reward(group)) == list(pairs.values())
    assert isinstance(reward([rollout("3", "")])[0], Invalid)


@needs_math
def test_a_symbolic_hang_is_an_infra_error() -> None:
    reward = build({"symbolic": {"deadline_s": 5.0}})
    hang, fine = reward([rollout(r"\boxed{9^{9^{9^{9}}}}", "7"), rollout(r"\boxed{7}", "7")])
    assert isinstance(hang, InfraError) and values([fine]) == [1.0]
