"""Log files of a run: truncation to a step on resume, and NaN and infinity as null."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ladder.base.jsonl import JsonLines, read_lines
from ladder.tracking.log import RunLog


def steps(path: Path) -> list[int]:
    return [r["step"] for r in read_lines(path)]


def test_cut(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.cut(3)
    assert not lines.path.exists()
    lines.write(*({"step": n, "text": "é\u2028\x85\n"} for n in (1, 2, 2, 3)))
    before = lines.path.read_bytes()
    lines.cut(3)
    assert lines.path.read_bytes() == before
    lines.cut(2)
    assert steps(lines.path) == [1, 2, 2] and before.startswith(lines.path.read_bytes())
    lines.write({"step": 3})
    assert steps(lines.path) == [1, 2, 2, 3]
    lines.cut(0)
    assert lines.path.read_bytes() == b"" and [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_text_may_contain_any_character(tmp_path: Path) -> None:
    text = "".join(map(chr, [*range(0x100), 0x2028, 0x2029, 0xFEFF, 0x1F600]))
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.write({"step": 1, "text": text}, {"step": 2, "text": text})
    assert [r["text"] for r in read_lines(lines.path)] == [text, text]
    lines.cut(1)
    assert [r["text"] for r in read_lines(lines.path)] == [text]


def test_an_incomplete_last_line_is_skipped_and_cut(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.write({"step": 1}, {"step": 2, "text": "日本"})
    whole = lines.path.read_bytes()
    for keep in range(len(whole) - 2, len(b'{"step": 1}\n'), -1):  # also within a character
        lines.path.write_bytes(whole[:keep])
        assert steps(lines.path) == [1], keep
        lines.cut(9)
        assert lines.path.read_bytes() == b'{"step": 1}\n'
    assert read_lines(tmp_path / "none.jsonl") == []


def test_nan_and_infinity_are_written_as_null_and_not_sent(tmp_path: Path) -> None:
    sent: list[dict[str, float]] = []

    class Sink:
        name = "sink"

        def log(self, step: int, figures: dict[str, float]) -> None:
            sent.append(figures)

        def close(self) -> None: ...

    log = RunLog(tmp_path, [Sink()])
    log.step(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(name)))
    assert record.pop("time") > 0
    assert record == {"step": 1, "a": None, "b": None, "c": None, "d": 0.5}
    assert sent == [{"d": 0.5}]


def test_each_step_is_written_at_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "new")
    log.step(1, {"loss": 1.0})
    assert steps(tmp_path / "new" / "metrics.jsonl") == [1]


def test_cut_truncates_metrics_rollouts_and_evaluations(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.step(step, {})
        log.rollouts.write({"step": step})
        log.evals.write({"step": step})
    log.cut(2)
    assert all(steps(tmp_path / f"{name}.jsonl") == [1, 2] for name in ("metrics", "rollouts", "evals"))
    log.cut_evals(2)
    assert steps(tmp_path / "evals.jsonl") == [1] and steps(tmp_path / "metrics.jsonl") == [1, 2]
