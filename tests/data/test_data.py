"""From files to samples: every layout is read, every error names file, line and field, and no row is lost silently."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from families import BOS, EOS, tokenizer
from ladder.base.errors import UserError
from ladder.contract.rollouts import Message
from ladder.data import hub, jsonl, parquet
from ladder.data.kinds import Answered, Chat, ExampleKind, Labelled, Origin, Preference, Text
from ladder.data.layouts import LAYOUTS, recognise
from ladder.data.rows import DEPTH, Bad, Row
from ladder.data.samples import Encoding, load, to_pairs, to_samples
from ladder.data.source import NAMED, Data, Report

TEMPLATE = (
    "<s> {% for m in messages %}{{ m.role }} {{ m.content }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def bot(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def write(tmp_path: Path, content: bytes | str | list[Any], name: str = "a.jsonl") -> Path:
    """Writes a file of bytes, of text, or of one JSON row per line."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def example(fields: dict[str, Any], layout: str | None = None) -> ExampleKind:
    """The only example in a row, without its origin."""
    row = Row(Origin("a.jsonl", 7), fields)
    (only,) = LAYOUTS[layout or recognise(row)].convert(row)
    return only


# ---------------------------------------------------------------- layouts

TALK = [user("Hi"), bot("Hello"), user("More"), bot("No")]
READ: dict[str, tuple[str, dict[str, Any], ExampleKind]] = {
    "text": ("text", {"text": " a\n", "id": 3}, Text(" a\n")),
    "messages": ("messages", {"messages": TALK}, Chat(TALK)),
    "messages and tools": (
        "messages",
        {"messages": TALK, "tools": [{"name": "f"}]},
        Chat(TALK, [{"name": "f"}]),
    ),
    "nulls of a typed table": (
        "messages",
        {"text": None, "messages": [user("a") | {"name": None}, bot("b") | {"tool_calls": None}]},
        Chat([user("a"), bot("b")]),
    ),
    "a tool call without content": (
        "messages",
        {"messages": [user("a"), {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        Chat([user("a"), {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]),
    ),
    "completion": ("completion", {"prompt": "a ", "completion": "b", "text": "x"}, Answered("a ", "b")),
    "completion in messages": (
        "completion",
        {"prompt": TALK[:1], "completion": TALK[1:2]},
        Answered(TALK[:1], TALK[1:2]),
    ),
    "labelled": ("labelled", {"prompt": "a", "completion": "b", "label": False}, Labelled("a", "b", False)),
    "labelled in messages": (
        "labelled",
        {"prompt": TALK[:3], "completion": TALK[3:], "label": True},
        Labelled(TALK[:3], TALK[3:], True),
    ),
    "preference": ("preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, Preference("a", "b", "c")),
    "preference in messages": (
        "preference",
        {"prompt": [user("a")], "chosen": [bot("b")], "rejected": [bot("c")]},
        Preference([user("a")], [bot("b")], [bot("c")]),
    ),
    "both answers repeat the prompt": (
        "preference",
        {"prompt": "a", "chosen": [user("a"), bot("b")], "rejected": [user("a"), bot("c")], "messages": TALK},
        Preference([user("a")], [bot("b")], [bot("c")]),
    ),
    "implicit": (
        "implicit",
        {"chosen": TALK, "rejected": [*TALK[:3], bot("Yes")]},
        Preference(TALK[:3], [bot("No")], [bot("Yes")]),
    ),
    "one answer continues the other": (
        "implicit",
        {"chosen": TALK, "rejected": TALK[:2]},
        Preference(TALK[:1], TALK[1:], TALK[1:2]),
    ),
    "alpaca": (
        "alpaca",
        {"instruction": "Add", "input": "1 2", "output": "3", "text": "### whole"},
        Answered([user("Add\n\n1 2")], [bot("3")]),
    ),
    "alpaca without input": (
        "alpaca",
        {"instruction": "Add", "input": "", "output": "3"},
        Answered([user("Add")], [bot("3")]),
    ),
    "self-instruct": (
        "self_instruct",
        {"instruction": "Add", "instances": [{"input": "1 2", "output": "3"}]},
        Answered([user("Add\n\n1 2")], [bot("3")]),
    ),
    "sharegpt": (
        "sharegpt",
        {"system": "Be brief", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        Chat([system("Be brief"), *TALK[:2]]),
    ),
    "sharegpt in roles": ("sharegpt", {"conversations": TALK}, Chat(TALK)),
    "hh": (
        "hh",
        {
            "chosen": "\n\nHuman: Hi\n\nHuman: you: there\n\nAssistant: Hello\n\nbye",
            "rejected": "\n\nHuman: Hi\n\nHuman: you: there\n\nAssistant: No",
        },
        Preference([user("Hi\n\nyou: there")], [bot("Hello\n\nbye")], [bot("No")]),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_each_layout_is_recognised_and_read(name: str) -> None:
    layout, fields, want = READ[name]
    assert recognise(Row(Origin("a", 1), fields)) == layout
    assert example(fields) == want


def test_every_layout_is_covered() -> None:
    assert {layout for layout, _, _ in READ.values()} == set(LAYOUTS)


def test_self_instruct_gives_several_examples_per_row(tmp_path: Path) -> None:
    pairs = [{"input": "", "output": "x"}, {"input": "b", "output": "y"}]
    data = Data(path=str(write(tmp_path, [{"instruction": "I", "instances": pairs}])))
    report = Report()
    examples = list(data.examples(report))
    assert [e.completion for e in examples if isinstance(e, Answered)] == [[bot("x")], [bot("y")]]
    assert (report.counts["rows"], report.counts["examples"]) == (1, 2)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"question": "a", "answer": "b"}, r"a.jsonl:7: the columns answer, question match no known layout .*Hint: rename"),
    ({"prompt": "a", "answer": "b"}, r"Hint: for training on the answers set columns: \{completion: answer\}"),
    ({"chosen": "a", "rejected": "b"}, r"the columns chosen, rejected match no known layout"),
    ({"text": None}, r"the columns \(none\)"),
    ({"text": 3}, r"^a.jsonl:7: text: must be text, not int"),
    ({"text": " \n"}, r"text: is empty"),
    ({"messages": "Hi"}, r"messages: must be a list of messages, not str"),
    ({"messages": []}, r"messages: is empty"),
    ({"messages": ["Hi"]}, r"messages\[0\]: must be an object"),
    ({"messages": [{"role": "bot", "content": "b"}]}, r"messages\[0\].role: 'bot' is not a role \(known: as"),
    ({"messages": [{"role": ["user"], "content": "b"}]}, r"messages\[0\].role: \['user'\] is not a role"),
    ({"messages": [user("a"), {"role": "assistant"}]}, r"messages\[1\].content: must be text, not missing"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, r"messages\[0\].content: must be text, not list"),
    ({"messages": [user("a"), bot("")]}, r"messages\[1\].content: is empty"),
    ({"messages": TALK, "tools": "f"}, r"tools: must be a list of JSON schemas"),
    ({"prompt": "a", "completion": [bot("b")]}, r"completion: prompt and answer must both"),
    ({"prompt": TALK[:1], "completion": [user("b")]}, r"completion: holds no assistant's turn"),
    ({"prompt": 3, "completion": "b"}, r"prompt: must be text or a list of messages, not int"),
    ({"prompt": "a", "completion": ""}, r"completion: is empty"),
    ({"prompt": "a", "completion": "b", "label": 1}, r"label: must be true or false, not 1"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, r"rejected: chosen and rejected are the same"),
    ({"prompt": "a", "chosen": "b", "rejected": [bot("c")]}, r"chosen: .*all be text or all be messages"),
    ({"prompt": TALK[:1], "chosen": [bot("b")], "rejected": TALK[:1]}, r"rejected: holds no assistant's turn"),
    (
        {"prompt": TALK[:3], "chosen": TALK, "rejected": TALK[:3]},
        r"rejected: holds no assistant's turn after the prompt",
    ),
    ({"chosen": TALK, "rejected": [user("Other"), bot("x")]}, r"rejected: .*share no prompt. Hint: give a column"),
    ({"chosen": TALK, "rejected": [*TALK[:1], user("x")]}, r"rejected: holds no assistant's turn"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: b"}, r"share no prompt"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "b"}, r"rejected: must be a transcript"),
    (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"},
        r"rejected\[1\].content: is empty",
    ),
    ({"chosen": "\n\nHuman: a\n\nHuman: b", "rejected": "\n\nHuman: a"}, r"share no prompt"),
    (
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"},
        r"chosen: does not end with an assistant",
    ),
    ({"instruction": "a", "input": 3, "output": "b"}, r"input: must be text, not int"),
    ({"instruction": "a", "output": ""}, r"output: is empty"),
    ({"instruction": "a", "instances": []}, r"instances: must be a non-empty list"),
    ({"instruction": "a", "instances": [{"input": "b"}]}, r"instances\[0\]: must be an object with"),
    ({"instruction": "a", "instances": [{"input": "", "output": " "}]}, r"instances\[0\].output: is empty"),
    ({"conversations": "a"}, r"conversations: must be a list of turns"),
    ({"conversations": []}, r"conversations: is empty"),
    ({"conversations": ["a"]}, r"conversations\[0\]: must be an object"),
    ({"conversations": [{"from": "me", "value": "a"}]}, r"conversations\[0\].from: 'me' is not a speaker"),
    ({"system": "s", "conversations": [{"from": "human"}]}, r"conversations\[0\].value: must be text, not missing"),
    ({"system": "s", "conversations": [user("")]}, r"conversations\[0\].content: is empty"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_an_error_names_the_row_and_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        example(fields)
    assert str(caught.value).startswith("a.jsonl:7: ")


def test_a_column_missing_in_a_later_row_is_named(tmp_path: Path) -> None:
    data = Data(path=str(write(tmp_path, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "label": True}])))
    with pytest.raises(UserError, match=r"a.jsonl:2: completion: is missing \(the row has: prompt, label\)"):
        list(data.examples())


# ---------------------------------------------------------------- JSON Lines

LINES: list[tuple[bytes, str]] = [
    (b'{"a": 1, "b": 2, "a": 3}', r":1:18: a: is a duplicate key"),
    ('{"é": 1, "é": 2}'.encode(), r":1:10: é: is a duplicate key"),
    (b'{"a": {"x": 1}, "x": 1, "x": 2}', r":1: x: is a duplicate key"),  # the column is ambiguous, so none is given
    (b'{"a": NaN}', r"NaN is not JSON"),
    (b'{"a": [-Infinity]}', r"-Infinity is not JSON"),
    (b'{"a": {"b": [1, 1e999]}}', r":1: a.b\[1\]: is not a finite number"),
    (b'\xef\xbb\xbf{"a": 1}', r":1:1: begins with a byte order mark \(UTF-8\)"),
    ('{"a": 1}\n'.encode("utf-16"), r":1:1: begins with a byte order mark \(UTF-16\)"),
    (b'{"a": "x\0"}', r":1:9: holds a NUL byte"),
    (rb'{"a": "x\u0000"}', r":1:9: a: holds a NUL character"),
    (rb'{"\u0000": 1}', r"the name holds a NUL"),
    (rb'{"a": {"\ud800": 1}}', r": a: the name holds a lone surrogate"),
    (rb'{"a": "\\u0000 \ud83d\ude00", "b": ["x", "y\udfff"]}', r":1:44: b\[1\]: holds a lone .*character 2: \\udfff"),
    (b'{"a": "\xe2\x82"}', r":1:8: is not UTF-8"),
    (b'{"a": "\xc3\xa9\xff"}', r":1:9: is not UTF-8"),  # the column counts characters
    (b'{"a": "b", "c": "d', r":1:17: c: is not JSON: Unterminated string"),
    (b'{"a": 1} {"a": 2}', r":1:10: .*Extra data"),
    (b'[{"a": 1}]', r"must be an object, not list. Hint: .*jq"),
    (b'[\n{"a": 1}\n]', r":1:2: is not JSON: .*jq"),
    (b'"a"', r"must be an object, not str"),
    (b'{"a": "x\ty"}', r":1:9: a: is not JSON: Invalid control character"),
    (b'{"a": ' + b"[" * 100_000, r"nested too deep"),
    (b'{"a": ' + b"[" * DEPTH + b"]" * DEPTH + b"}", rf"nested more than {DEPTH} deep"),
    (b'{"a": ' + b"1" * 5000 + b"}", r"is JSON that Python cannot read"),
]


@pytest.mark.parametrize(("line", "message"), LINES)
def test_a_bad_line_is_reported_and_the_next_line_is_read(tmp_path: Path, line: bytes, message: str) -> None:
    rows = list(jsonl.read(write(tmp_path, line)))
    assert isinstance(rows[0], Bad) and rows[0].origin.line == 1
    with pytest.raises(UserError, match=rf"a\.jsonl.*{message}"):
        raise rows[0].error
    if b"\n" not in line:
        assert rows[0].raw == line
        bad, good = jsonl.read(write(tmp_path, line + b'\n{"b": 1}\n'))
        assert isinstance(bad, Bad) and isinstance(good, Row) and good.fields == {"b": 1} and good.origin.line == 2


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"x"])
def test_line_ends_blank_lines_and_a_missing_last_line_end(tmp_path: Path, end: bytes, last: bytes) -> None:
    tail = b'{"c": 3}' if last else b""
    lines = [b"", b'{"a": "1\xe2\x80\xa8"}', b" \t", b'{"b": 2}', tail]
    rows = list(jsonl.read(write(tmp_path, end.join(lines))))
    assert [(r.origin.line, r.fields) for r in rows if isinstance(r, Row)] == [
        (2, {"a": "1\u2028"}),
        (4, {"b": 2}),
        *([(5, {"c": 3})] if last else []),
    ]


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n"])
def test_a_file_without_rows(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    assert list(jsonl.read(path)) == []
    with pytest.raises(UserError, match=r"a\.jsonl: holds no usable row"):
        list(Data(path=str(path)).examples())


def test_a_line_that_is_too_long_is_skipped(tmp_path: Path) -> None:
    """All lengths around the limit, with all line ends."""
    for ends in ((b"\n", b"\n"), (b"\r\n", b"\r\n"), (b"\n", b"")):
        for size in [*range(38, 46), 3000]:
            lines = [b'{"a": 1}', b'{"a": "' + b"x" * (size - 9) + b'"}', b'{"a": 2}']
            assert len(lines[1]) == size
            order = lines if ends[1] else [lines[0], lines[2], lines[1]]
            path = write(tmp_path, ends[0].join(order) + ends[1])
            rows = list(jsonl.read(path, max_bytes=40))
            assert [isinstance(r, Row) for r in rows] == [len(line) <= 40 for line in order]
            assert [r.origin.line for r in rows] == [1, 2, 3]
            for r in rows:
                if isinstance(r, Bad):
                    assert "longer than 40 bytes. Hint: split the row, or raise max_row_bytes" in str(r.error)


def any_json(rnd: random.Random, depth: int = 0) -> Any:
    letters = "ab \n\t\r\"\\/{}[]:,éß☃😀\u2028\u2029\x85\x7f\ufeff\u200d"
    makers: list[Callable[[], Any]] = [
        lambda: "".join(rnd.choice(letters) for _ in range(rnd.randrange(12))),
        lambda: rnd.choice([None, True, False, 0, -1, 1 << 70, 1.5, -1e-300]),
    ]
    if depth < 3:
        makers += [
            lambda: [any_json(rnd, depth + 1) for _ in range(rnd.randrange(4))],
            lambda: {f"k{i}": any_json(rnd, depth + 1) for i in range(rnd.randrange(4))},
        ]
    return rnd.choice(makers)()


def test_json_round_trip(tmp_path: Path) -> None:
    rnd = random.Random(0)
    rows = [{str(any_json(rnd, 3)) + str(i): any_json(rnd) for i in range(rnd.randrange(4))} for _ in range(300)]
    content = b""
    for row in rows:
        text = json.dumps(row, ensure_ascii=rnd.random() < 0.5, separators=rnd.choice([(",", ":"), (", ", ": ")]))
        content += text.encode() + rnd.choice([b"\n", b"\r\n"])
    read = list(jsonl.read(write(tmp_path, content)))
    assert [r.fields for r in read if isinstance(r, Row)] == rows and len(read) == len(rows)


DAMAGE = [b"", b"\0", b'"', b"{", b"\xff", b"\n", b"\r", b"\\ud800", b"NaN"]


def test_damaged_files_are_read_without_a_traceback(tmp_path: Path) -> None:
    """Bytes changed, removed or inserted at random give rows or bad rows, each with its line, and no exception."""
    rnd = random.Random(1)
    rows = [{"prompt": "aé☃" * i, "completion": "b\u0001", "n": [i]} for i in range(9)]
    intact = "".join(json.dumps(row) + "\n" for row in rows).encode()
    for _ in range(300):
        content = bytearray(intact)
        for _ in range(rnd.randrange(1, 6)):
            at = rnd.randrange(len(content))
            content[at : at + rnd.randrange(3)] = rnd.choice(DAMAGE)
        path = write(tmp_path, bytes(content))
        rows = list(jsonl.read(path, max_bytes=120))
        lines = [r.origin.line for r in rows]
        assert lines == sorted(set(lines)) and lines[-1] <= content.count(b"\n") + 1
        assert all(isinstance(r, Row) or str(r.error).startswith(f"{path}:{r.origin.line}") for r in rows)
        report = Report()
        try:
            examples = list(Data(path=str(path), on_bad_row="skip", layout="completion").examples(report))
        except UserError as err:
            assert "no usable row" in str(err)
        else:
            assert len(examples) == report.counts["rows"] - report.counts.get("bad rows", 0)


# ---------------------------------------------------------------- sources


def test_bad_paths_are_rejected(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path, "is a directory"),
        (tmp_path / "none.jsonl", r"none.jsonl: cannot be read: No such file.*Hint: check the path"),
        (tmp_path / "none.parquet", r"none.parquet: cannot be read as Parquet"),
        (tmp_path / "a.csv", r"the file name extension '.csv' is not supported. Hint: use .jsonl"),
    ]:
        if path.suffix == ".parquet":
            pytest.importorskip("pyarrow")
        with pytest.raises(UserError, match=message):
            list(Data(path=str(path)).examples())


def test_settings_that_conflict_are_rejected(tmp_path: Path) -> None:
    path = str(tmp_path / "a.jsonl")
    for changes, message in [
        ({"layout": "alpacca"}, "'alpacca' is not a layout"),
        ({"on_bad_row": "quarantine"}, "on_bad_row: quarantine must be given together"),
        ({"quarantine": "x"}, "on_bad_row: quarantine must be given together"),
        ({"on_bad_row": "quarantine", "quarantine": f"{tmp_path}/./a.jsonl"}, "would overwrite"),
        ({"split": "test"}, "subset and split are for hub"),
        ({"columns": {"prompt": "q", "completion": "q"}}, "the same column"),
        ({"limit": 0}, "limit"),
        ({"colums": {}}, "colums"),
    ]:
        with pytest.raises(ValidationError, match=message):
            Data.model_validate({"path": path} | changes)


ROWS = [
    {"messages": TALK[:2], "n": 1},
    {"messages": [user("é☃"), bot("x\u2028")], "n": 2},
    {"messages": [system("s"), user("a"), bot("b")], "n": None},
]


def table(rows: list[dict[str, Any]], path: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_parquet_and_json_lines_give_the_same_rows(tmp_path: Path) -> None:
    from_parquet = list(Data(path=str(table(ROWS, tmp_path / "a.parquet"))).examples())
    from_jsonl = list(Data(path=str(write(tmp_path, ROWS))).examples())
    assert [e.at(Origin("", 0)) for e in from_parquet] == [e.at(Origin("", 0)) for e in from_jsonl]
    assert [str(e.origin) for e in from_parquet] == [f"{tmp_path}/a.parquet:{i}" for i in (1, 2, 3)]


def test_bad_rows_in_parquet(tmp_path: Path) -> None:
    columns = zip(["a", "b\0", "c", None], [1.0, 1.0, float("nan"), 1.0], strict=True)
    rows = [{"text": text, "x": x} for text, x in columns]
    path = table(rows, tmp_path / "a.parquet")
    report = Report()
    assert [e.text for e in Data(path=str(path), on_bad_row="skip").examples(report) if isinstance(e, Text)] == ["a"]
    assert report.where["bad rows"] == [
        f"{path}:2: text: holds a NUL character",
        f"{path}:3: x: is not a finite number",
        f"{path}:4: text: is missing (the row has: x)",
    ]
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut.parquet: cannot be read as Parquet \(after 0 rows\)"):
        list(parquet.read(cut))


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    for path in (str(tmp_path / "a.parquet"), "hub:name"):
        with pytest.raises(UserError, match=r"not installed. Hint: pip install 'signal-ladder\[data\]'"):
            list(Data(path=path).examples())


def fake_hub(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., Any]) -> None:
    """Installs a fake module `datasets` with only the names that are used."""
    module, exceptions = ModuleType("datasets"), ModuleType("datasets.exceptions")
    vars(module).update(load_dataset=load_dataset, exceptions=exceptions)
    vars(exceptions).update(DatasetsError=type("DatasetsError", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)


def test_the_hub_is_queried_for_name_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> list[dict[str, Any]]:
        calls.append((name, subset, split))
        return [{"text": "a", "label": None}, {"text": "\0"}, {"text": "b"}]

    fake_hub(monkeypatch, load_dataset)
    examples = list(Data(path="hub:who/what", limit=1).examples())
    assert examples == [Text("a", origin=Origin("hub:who/what[train]", 1))]
    with pytest.raises(UserError, match=r"hub:who/what/en\[test\]:2: text: holds a NUL"):
        list(Data(path="hub:who/what", subset="en", split="test").examples())
    assert calls == [("who/what", None, "train"), ("who/what", "en", "test")]


def test_an_error_of_the_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("no such data set")

    fake_hub(monkeypatch, load_dataset)
    with pytest.raises(UserError, match=r"hub:x\[train\]: cannot be loaded: no such data set. Hint: check name"):
        list(hub.read("x"))


def test_a_directory_is_loaded_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package on local files, without a network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    (tmp_path / "set").mkdir()
    write(tmp_path, ROWS, "set/train.jsonl")
    from_hub = list(Data(path=f"hub:{tmp_path}/set").examples())
    from_jsonl = list(Data(path=f"{tmp_path}/set/train.jsonl").examples())
    assert [e.at(Origin("", 0)) for e in from_hub] == [e.at(Origin("", 0)) for e in from_jsonl]
    with pytest.raises(UserError, match=r"\[nosplit\]: cannot be loaded"):
        list(Data(path=f"hub:{tmp_path}/set", split="nosplit").examples())


# ---------------------------------------------------------------- columns, bad rows, limits

RENAMED = {"prompt": "question", "completion": "answer"}


def test_columns_are_renamed(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": "b", "prompt": "not this"}]
    (example,) = Data(path=str(write(tmp_path, rows)), columns=RENAMED).examples()
    assert isinstance(example, Answered) and (example.prompt, example.completion) == ("a", "b")
    path = str(write(tmp_path, [{"prompt": "b", "completion": "a"}]))
    (example,) = Data(path=path, columns={"text": "prompt"}).examples()
    assert isinstance(example, Text) and example.text == "b"  # a renamed column loses its old name
    (example,) = Data(path=path, columns={"prompt": "completion", "completion": "prompt"}).examples()
    assert isinstance(example, Answered) and (example.prompt, example.completion) == ("a", "b")


def test_errors_use_the_column_names_of_the_data(tmp_path: Path) -> None:
    path = write(tmp_path, [{"question": "a", "answer": "b"}, {"question": "a", "answer": 3}, {"question": "a"}])
    report = Report()
    list(Data(path=str(path), columns=RENAMED, on_bad_row="skip").examples(report))
    assert report.where["bad rows"][0] == f"{path}:2: answer: must be text or a list of messages, not int"
    assert report.where["bad rows"][1].startswith(f"{path}:3: answer: is missing")
    talk = write(tmp_path, [{"chat": [user("a"), bot("")]}])
    with pytest.raises(UserError, match=r"a.jsonl:1: chat\[1\].content: is empty"):
        list(Data(path=str(talk), columns={"messages": "chat"}).examples())
    with pytest.raises(UserError, match=r"messages: is mapped to 'talk', which is no column of the data \(chat\)"):
        list(Data(path=str(talk), columns={"messages": "talk"}).examples())


MIXED = b'{"text": "a"}\n{"text": 1}\n{"text": "b\n{"text": "c"}\n\xff\n'


def test_a_bad_row_is_an_error_by_default(tmp_path: Path) -> None:
    path = str(write(tmp_path, MIXED))
    with pytest.raises(UserError, match=r"a.jsonl:2: text: must be text"):
        list(Data(path=path).examples())
    assert [e.text for e in Data(path=path, limit=1).examples() if isinstance(e, Text)] == ["a"]


def test_bad_rows_are_skipped_or_quarantined(tmp_path: Path) -> None:
    path = str(write(tmp_path, MIXED))
    quarantine = tmp_path / "quarantine.jsonl"
    for data in (
        Data(path=path, on_bad_row="skip"),
        Data(path=path, on_bad_row="quarantine", quarantine=str(quarantine)),
    ):
        report = Report()
        assert [e.text for e in data.examples(report) if isinstance(e, Text)] == ["a", "c"]
        assert report.counts == {"rows": 5, "examples": 2, "bad rows": 3}
    rows = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [(r["file"], r["line"], r["row"]) for r in rows] == [
        (path, 2, '{"text": 1}'),
        (path, 3, '{"text": "b'),
        (path, 5, "\\xff"),
    ]
    assert "must be text, not int" in rows[0]["why"]
    with pytest.raises(UserError, match="quarantine: cannot be written"):
        list(Data(path=path, on_bad_row="quarantine", quarantine=str(tmp_path / "no" / "x")).examples())


def test_a_file_of_bad_rows_only_is_an_error_that_shows_one(tmp_path: Path) -> None:
    data = Data(path=str(write(tmp_path, b"x\ny\n")), on_bad_row="skip")
    with pytest.raises(UserError, match=r"holds no usable row; .*a.jsonl:1:1: is not JSON.*Hint: correct the rows"):
        list(data.examples())


def test_the_limit_counts_rows(tmp_path: Path) -> None:
    path = str(write(tmp_path, [{"text": f"w{i}"} for i in range(9)]))
    report = Report()
    assert len(list(Data(path=path, limit=4).examples(report))) == 4
    assert report.counts["rows"] == 4


def test_the_layout_can_be_set(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "text": "c"}]
    data = Data(path=str(write(tmp_path, rows)), layout="text")
    assert [e.text for e in data.examples() if isinstance(e, Text)] == ["c"]


def test_the_report_names_the_first_places_of_each_count(tmp_path: Path) -> None:
    report = Report()
    for i in range(NAMED + 2):
        report.add("bad rows", f"a:{i}")
    report.add("rows", n=1200)
    report.add("over-long, dropped", "a:3")
    report.layout = "text"
    assert report.lines() == [
        "layout: text",
        f"bad rows: {NAMED + 2} (" + "; ".join(f"a:{i}" for i in range(NAMED)) + ", ...)",
        "rows: 1,200",
        "over-long, dropped: 1 (a:3)",
    ]


# ---------------------------------------------------------------- samples


def chat_tokenizer() -> Any:
    tok = tokenizer()
    tok.chat_template = TEMPLATE
    return tok


def answered(prompt: str, completion: str, line: int = 1) -> Answered:
    return Answered(prompt, completion, origin=Origin("a.jsonl", line))


FOUR = answered("<s> w5 w6", " w7 w8")  # six tokens, including EOS


def test_samples_carry_their_origin(tmp_path: Path) -> None:
    rows = [("w5", " w6", True), ("w7", " w8", False)]
    path = str(write(tmp_path, [dict(zip(("prompt", "completion", "label"), r, strict=True)) for r in rows]))
    samples, report = load(Data(path=path), tokenizer())
    assert [s.tokens.tolist() for s in samples] == [[5, 6, EOS], [7, 8, EOS]]
    assert [s.mask.tolist() for s in samples] == [[False, True, True]] * 2
    assert [s.meta for s in samples] == [{"origin": f"{path}:{i}", "label": i == 1} for i in (1, 2)]
    assert report.lines()[0] == "layout: labelled"


@pytest.mark.parametrize(
    ("side", "tokens", "trained"),
    [
        ("right", [BOS, 5, 6, 7], [7]),
        ("left", [BOS, 7, 8, EOS], [7, 8, EOS]),
    ],
)
def test_over_long_rows_are_cut_on_request(side: Any, tokens: list[int], trained: list[int]) -> None:
    report = Report()
    (sample,) = to_samples([FOUR], tokenizer(), Encoding(max_tokens=4, over_long=side), report)
    assert sample.tokens.tolist() == tokens and sample.tokens[sample.mask].tolist() == trained
    assert report.counts[f"over-long, cut from the {side}"] == 1
    assert report.where[f"over-long, cut from the {side}"] == ["a.jsonl:1"]


def test_a_cut_never_leaves_the_first_token_trained() -> None:
    (sample,) = to_samples([Text("w5 w6 w7 w8")], tokenizer(), Encoding(max_tokens=3, over_long="left"))
    assert sample.tokens.tolist() == [7, 8, EOS] and sample.mask.tolist() == [False, True, True]


def test_over_long_rows_are_rejected_or_dropped() -> None:
    short = answered("w5", " w6", 2)
    with pytest.raises(UserError, match=r"a.jsonl:1: is 6 tokens long, more than max_tokens = 5. Hint: raise"):
        to_samples([short, FOUR], tokenizer(), Encoding(max_tokens=5))
    assert len(to_samples([FOUR], tokenizer(), Encoding(max_tokens=6))) == 1
    report = Report()
    assert len(to_samples([short, FOUR], tokenizer(), Encoding(max_tokens=5, over_long="drop"), report)) == 1
    assert report.counts == {"over-long, dropped": 1} and report.where == {"over-long, dropped": ["a.jsonl:1"]}


@pytest.mark.parametrize("untrained", [Chat([user("w5")], origin=Origin("a.jsonl", 3)), answered("w5 w6 w7", " w8", 3)])
def test_rows_with_nothing_to_train(untrained: ExampleKind) -> None:
    """A conversation without an answer, and a row whose answer is cut off."""
    cut = {"max_tokens": 3, "over_long": "right"} if isinstance(untrained, Answered) else {}
    with pytest.raises(UserError, match=r"a.jsonl:3: nothing in it is trained. Hint: .*untrained: drop"):
        to_samples([untrained], chat_tokenizer(), Encoding.model_validate(cut))
    report = Report()
    encoding = Encoding.model_validate(cut | {"untrained": "drop"})
    samples = to_samples([untrained, answered("w5", " w6", 4)], chat_tokenizer(), encoding, report)
    assert [s.meta["origin"] for s in samples] == ["a.jsonl:4"]
    assert report.where["nothing to train, dropped"] == ["a.jsonl:3"]


def test_a_file_of_which_no_row_is_left_is_an_error(tmp_path: Path) -> None:
    path = str(write(tmp_path, [{"text": "w5 w6 w7"}]))
    with pytest.raises(UserError, match=r"no row is left \(layout: text; rows: 1; .*over-long, dropped: 1"):
        load(Data(path=path), tokenizer(), Encoding(max_tokens=2, over_long="drop"))


def test_chat_template_renders_text_as_turns() -> None:
    tok = chat_tokenizer()
    (plain,) = to_samples([answered("w5", " w6")], tok)
    (turn,) = to_samples([answered("w5", "w6")], tok, Encoding(chat_template=True))
    (same,) = to_samples([Chat([user("w5"), bot("w6")])], tok)
    assert plain.tokens.tolist() == [5, 6, EOS]
    assert turn.tokens.tolist() == same.tokens.tolist() and turn.mask.tolist() == same.mask.tolist()
    assert turn.tokens[turn.mask].tolist() == [6, EOS]


def test_inconsistent_encodings_are_rejected() -> None:
    with pytest.raises(ValidationError, match="over_long: left needs max_tokens"):
        Encoding(over_long="left")
    with pytest.raises(ValidationError, match="max_tokens"):
        Encoding(max_tokens=1)


LIKED = Preference("w5 w6", " w7", " w8 w9 w10", origin=Origin("a.jsonl", 5))


def test_pairs_share_their_prompt_and_are_dropped_together() -> None:
    (pair,) = to_pairs([LIKED], tokenizer())
    assert pair.chosen.tokens.tolist() == [5, 6, 7, EOS] and pair.rejected.tokens.tolist() == [5, 6, 8, 9, 10, EOS]
    assert [s.mask.tolist().index(True) for s in (pair.chosen, pair.rejected)] == [2, 2]
    with pytest.raises(UserError, match=r"a.jsonl:5: is 6 tokens long"):
        to_pairs([LIKED], tokenizer(), Encoding(max_tokens=5))
    report = Report()
    assert to_pairs([LIKED], tokenizer(), Encoding(max_tokens=5, over_long="drop"), report) == []
    assert report.counts == {"over-long, dropped": 1}
    (cut,) = to_pairs([LIKED], tokenizer(), Encoding(max_tokens=5, over_long="right"))
    assert cut.chosen.tokens.tolist() == [5, 6, 7, EOS] and cut.rejected.tokens.tolist() == [5, 6, 8, 9, 10]
    with pytest.raises(UserError, match="pairs cannot be cut from the left"):
        to_pairs([LIKED], tokenizer(), Encoding(max_tokens=5, over_long="left"))


def test_wrong_kinds_of_examples_are_rejected() -> None:
    with pytest.raises(UserError, match=r"a.jsonl:5: is a preference, which cannot be one sample"):
        to_samples([LIKED], tokenizer())
    with pytest.raises(UserError, match=r"a.jsonl:1: is Answered, not a preference"):
        to_pairs([FOUR], tokenizer())
