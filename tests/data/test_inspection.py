"""`ladder inspect`: colours show which tokens are trained, and nothing in a file reaches the terminal as a command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from chat_templates import FAMILIES, TALK, shared
from families import BOS, EOS, tokenizer
from ladder.base.errors import UserError
from ladder.contract.training import Sample
from ladder.data.chat import encode_example
from ladder.data.inspection import CONTEXT, SPECIAL, SPECIAL_TRAINED, TRAINED, inspect_file, render, summary, visible
from ladder.data.kinds import Chat
from ladder.data.samples import Encoding
from ladder.data.source import Data


def sample(tokens: list[int], trained: set[int], **meta: Any) -> Sample:
    mask = torch.tensor([i in trained for i in range(len(tokens))])
    return Sample(torch.tensor(tokens), mask, {}, meta)


def pieces(tok: Any, of: Sample) -> list[tuple[str, str]]:
    """(text, style) of each styled span before the line of counts."""
    text = render(tok, of)
    return [(text.plain[s.start : s.end], str(s.style)) for s in text.spans][:-1]


def test_colours_follow_the_mask() -> None:
    assert pieces(tokenizer(), sample([BOS, 5, 6, EOS, 7, 8, EOS], {4, 5, 6})) == [
        ("<s>", SPECIAL),
        ("w5 w6", CONTEXT),
        ("</s>", SPECIAL),
        ("w7 w8", TRAINED),
        ("</s>", SPECIAL_TRAINED),
    ]
    assert len({TRAINED, CONTEXT, SPECIAL, SPECIAL_TRAINED}) == 4


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "smollm2"])
def test_green_text_is_what_encode_example_trains(name: str) -> None:
    """In a real conversation; characters that span several tokens are not split."""
    tok = shared(name)
    tokens, mask = encode_example(tok, Chat(TALK))
    spans = pieces(tok, sample(tokens, {i for i, m in enumerate(mask) if m}))
    green = "".join(text for text, style in spans if style in (TRAINED, SPECIAL_TRAINED))
    assert green == tok.decode([t for t, m in zip(tokens, mask, strict=True) if m])
    assert "Hello ☃!" in green
    for text, style in spans:  # the end of a turn is special even where it is not the tokenizer's EOS
        assert (FAMILIES[name][3] in text) <= (style in (SPECIAL, SPECIAL_TRAINED))
    assert "".join(text for text, _ in spans) == tok.decode(tokens)


def test_the_line_of_counts() -> None:
    tok = tokenizer()
    line = "tokens 4 · trained {} · BOS 1 · terminator trained: {}"
    assert summary(tok, sample([BOS, 5, 6, EOS], {2, 3})) == line.format(2, "yes")
    assert summary(tok, sample([BOS, 5, 6, EOS], {1, 2})) == line.format(2, "no")
    assert summary(tok, sample([BOS, 5, 6, EOS], set())) == line.format(0, "no")
    labelled = summary(tok, sample([BOS, BOS, 6, EOS], {3}, label=False))
    assert labelled.endswith("BOS 2 · terminator trained: yes · label False")


def test_control_characters_are_escaped() -> None:
    assert visible("a\x1b[31mb\rc\x07\x7f\x85\u202e\0", arrows=False) == r"a\x1b[31mb\x0dc\x07\x7f\x85\x202e\x00"
    assert visible("é☃ 😀\u200d\ufe0f\xa0\u3000\t\n", arrows=False) == "é☃ 😀\u200d\ufe0f\xa0\u3000\t\n"
    assert visible("a\n\nb", arrows=True) == "a↵\n↵\nb"
    for i in [*range(32), *range(0x7F, 0xA0)]:
        assert chr(i) in "\n\t" or visible(chr(i), arrows=True) == f"\\x{i:02x}"


def show(path: Path | Data, tok: Any, rows: int = 9, encoding: Encoding | None = None, *, colour: bool = False) -> str:
    console = Console(file=io.StringIO(), width=60, force_terminal=colour, color_system="standard" if colour else None)
    inspect_file(path if isinstance(path, Data) else str(path), tok, rows, console, encoding)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def write(tmp_path: Path, rows: list[Any], name: str = "a.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_shown_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, [{"prompt": f"w{i}", "completion": " w6"} for i in range(5, 9)], "[red]a.jsonl")
    text = show(Path("[red]a.jsonl"), tokenizer(), rows=2)
    assert [line.rstrip(" ─") for line in text.splitlines()] == [
        "[red]a.jsonl:1",  # a file name is not parsed as markup
        "w5w6</s>",
        "tokens 3 · trained 2 · BOS 0 · terminator trained: yes",
        "[red]a.jsonl:2",
        "w6w6</s>",
        "tokens 3 · trained 2 · BOS 0 · terminator trained: yes",
        "",
        "trained  context  special  special, trained",
        "layout: completion",
        "rows: 2",
        "examples: 2",
    ]
    green = show(Path("[red]a.jsonl"), tokenizer(), rows=1, colour=True)
    assert "\x1b[32mw6\x1b[0m" in green and "\x1b[1;7;32m</s>\x1b[0m" in green


def test_both_sides_of_a_preference_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "w5", "chosen": " w6", "rejected": " w7 w8"}])
    lines = [line.rstrip(" ─") for line in show(path, tokenizer()).splitlines()]
    assert [line for line in lines if line.startswith("w")] == ["w5w6</s>", "w5w7 w8</s>"]
    assert [line for line in lines if line.startswith("a.jsonl")] == ["a.jsonl:1 chosen", "a.jsonl:1 rejected"]


def test_no_control_character_of_a_file_reaches_the_terminal(tmp_path: Path) -> None:
    tok = shared("chatml")
    path = write(tmp_path, [{"text": "a\x1b[2Jb\x07"}, {"te\x1b[2Jxt": "c"}])
    text = show(Data(path=str(path), on_bad_row="skip"), tok)
    assert "a\\x1b[2Jb\\x07" in text and "bad rows: 1" in text and "te\\x1b[2Jxt" in text
    assert not set(text) & {chr(i) for i in [*range(9), *range(11, 32), *range(0x7F, 0xA0)]}


def test_inspecting_fails_as_loading_does(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "w5", "completion": " w6 w7"}])
    with pytest.raises(UserError, match=r"a.jsonl:1: is 4 tokens long"):
        show(path, tokenizer(), encoding=Encoding(max_tokens=3))
    assert "over-long, cut from the right: 1" in show(
        path, tokenizer(), encoding=Encoding(max_tokens=3, over_long="right")
    )
