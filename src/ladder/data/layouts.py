"""The layouts of rows: how each is recognised, and how its rows are converted to examples (`data/kinds.py`).

The usual column names (TRL's): `text`; `messages`; `prompt`, `completion`; `prompt`, `chosen`, `rejected` (the
prompt may also be the common prefix of both); `prompt`, `completion`, `label`. And the layouts of well-known data sets:
Alpaca (`instruction`, `input`, `output`), the self-instruct seeds (`instruction`, `instances`), ShareGPT
(`conversations` of `from`, `value`) and hh-rlhf (`chosen`, `rejected` as transcripts). Other columns are ignored.

A layout is recognised by the columns of the first row; `LAYOUTS` is tried in order, the more specific layouts first. To
add a layout, write one function and one entry of `LAYOUTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ladder.base.errors import UserError
from ladder.contract.rollouts import Message
from ladder.data.kinds import Answered, Chat, Content, ExampleKind, Labelled, Preference, Text
from ladder.data.rows import Row

ROLES = {"system", "developer", "user", "assistant", "tool"}


@dataclass(frozen=True, slots=True)
class Layout:
    """columns: the columns that a row must have. convert: converts a row to its examples. fits: a further condition on
    the row's values, for layouts with the same columns."""

    columns: tuple[str, ...]
    convert: Callable[[Row], list[ExampleKind]]
    fits: Callable[[Mapping[str, Any]], bool] = lambda fields: True


def recognise(row: Row) -> str:
    """The name of a row's layout. Raises UserError naming the row's columns and the known layouts."""
    fields = {k for k, v in row.fields.items() if v is not None}
    for name, layout in LAYOUTS.items():
        if fields.issuperset(layout.columns) and layout.fits(row.fields):
            return name
    known = "; ".join(f"{name}: {', '.join(layout.columns)}" for name, layout in LAYOUTS.items())
    hint = "rename them, for example columns: {prompt: question, completion: answer}"
    if {"prompt", "answer"} <= fields:
        hint = "for training on the answers set columns: {completion: answer}; prompt and answer are a task for rewards"
    columns = ", ".join(sorted(fields)) or "(none)"
    raise row.error(f"the columns {columns} match no known layout ({known})", hint=hint)


def convert(row: Row, layout: str) -> list[ExampleKind]:
    """The examples in a row, with its origin. Raises UserError naming the field that is wrong."""
    return [example.at(row.origin) for example in LAYOUTS[layout].convert(row)]


# ---------------------------------------------------------------- fields


def _get(row: Row, name: str) -> Any:
    """The value of a column, which must not be null."""
    value = row.fields.get(name)
    if value is None:
        present = ", ".join(k for k, v in row.fields.items() if v is not None)
        raise row.error(f"is missing (the row has: {present or 'nothing'})", field=name)
    return value


def _text(row: Row, name: str, *, blank: bool = False) -> str:
    """The text in a column. blank: whether it may be empty or only spaces."""
    value = _get(row, name)
    if not isinstance(value, str):
        raise row.error(f"must be text, not {type(value).__name__}", field=name)
    if not blank and not value.strip():
        raise row.error("is empty", field=name)
    return value


def _messages(row: Row, name: str, value: Any, *, content_key: str = "content") -> list[Message]:
    """The messages in a value, checked. A message's other keys (tool_calls, name, ...) are kept for the chat template.
    content_key: name of a message's content in the data, for error messages."""
    if not isinstance(value, list):
        raise row.error(f"must be a list of messages, not {type(value).__name__}", field=name)
    if not value:
        raise row.error("is empty", field=name)
    for i, message in enumerate(value):
        at = f"{name}[{i}]"
        if not isinstance(message, dict):
            raise row.error(f"must be an object with role and content, not {type(message).__name__}", field=at)
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise row.error(f"{role!r} is not a role (known: {', '.join(sorted(ROLES))})", field=f"{at}.role")
        calls = message.get("tool_calls")
        if content is None and role == "assistant" and calls:
            continue
        if not isinstance(content, str):
            actual = "missing" if content is None else type(content).__name__
            raise row.error(f"must be text, not {actual}", field=f"{at}.{content_key}")
        if not content.strip() and not calls and role in ("user", "assistant"):
            raise row.error("is empty", field=f"{at}.{content_key}")
    # in typed tables every message has every key, with null for absent ones
    return [{k: v for k, v in m.items() if v is not None} | {"content": m.get("content") or ""} for m in value]


def _content(row: Row, name: str, *, answer: bool = False) -> Content:
    """The text or messages in a column. answer: messages must include a turn of the assistant, which is trained."""
    value = _get(row, name)
    if isinstance(value, str):
        return _text(row, name)
    if not isinstance(value, list):
        raise row.error(f"must be text or a list of messages, not {type(value).__name__}", field=name)
    messages = _messages(row, name, value)
    if answer and not any(m["role"] == "assistant" for m in messages):
        raise row.error("holds no assistant's turn", field=name)
    return messages


def _answer(row: Row, name: str, prompt: Content) -> Content:
    """The answer in a column, which must have the form of the prompt (text or messages)."""
    answer = _content(row, name, answer=True)
    if isinstance(answer, str) != isinstance(prompt, str):
        raise row.error("prompt and answer must both be text or both be messages", field=name)
    return answer


def _tools(row: Row) -> list[dict[str, Any]] | None:
    """The tools of a row, if it has any."""
    tools = row.fields.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise row.error("must be a list of JSON schemas", field="tools")
    return tools or None


# ---------------------------------------------------------------- the usual column names


def _of_text(row: Row) -> list[ExampleKind]:
    return [Text(_text(row, "text"))]


def _of_messages(row: Row) -> list[ExampleKind]:
    messages = _messages(row, "messages", _get(row, "messages"))
    return [Chat(messages, _tools(row))]


def _of_completion(row: Row) -> list[ExampleKind]:
    prompt = _content(row, "prompt")
    return [Answered(prompt, _answer(row, "completion", prompt), _tools(row))]


def _of_labelled(row: Row) -> list[ExampleKind]:
    label = _get(row, "label")
    if not isinstance(label, bool):
        raise row.error(f"must be true or false, not {label!r}", field="label")
    prompt = _content(row, "prompt")
    return [Labelled(prompt, _answer(row, "completion", prompt), label, _tools(row))]


def _of_preference(row: Row) -> list[ExampleKind]:
    prompt = _content(row, "prompt")
    chosen, rejected = _content(row, "chosen", answer=True), _content(row, "rejected", answer=True)
    if isinstance(prompt, str) and isinstance(chosen, list) and isinstance(rejected, list):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and isinstance(chosen, list) and isinstance(rejected, list):
        n = len(prompt)
        if chosen[:n] == prompt == rejected[:n]:  # both answers repeat the prompt
            chosen, rejected = chosen[n:], rejected[n:]
    if len({isinstance(c, str) for c in (prompt, chosen, rejected)}) > 1:
        raise row.error("prompt, chosen and rejected must all be text or all be messages", field="chosen")
    return [_preference(row, prompt, chosen, rejected)]


def _of_implicit(row: Row) -> list[ExampleKind]:
    """Preferences as two whole conversations, whose common prefix is the prompt."""
    chosen = _messages(row, "chosen", _get(row, "chosen"))
    rejected = _messages(row, "rejected", _get(row, "rejected"))
    n = _common(chosen, rejected)
    if not n:
        raise row.error("chosen and rejected share no prompt", field="rejected", hint="give a column `prompt`")
    return [_preference(row, chosen[:n], chosen[n:], rejected[n:])]


def _common(a: list[Message], b: list[Message]) -> int:
    """Number of leading messages that two conversations share, not counting the last message of either."""
    n = 0
    while n < min(len(a), len(b)) - 1 and a[n] == b[n]:
        n += 1
    return n


def _preference(row: Row, prompt: Content, chosen: Content, rejected: Content) -> Preference:
    """A preference, whose answers must differ and include a turn of the assistant."""
    if chosen == rejected:
        raise row.error("chosen and rejected are the same", field="rejected", hint="leave the row out")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or (isinstance(side, list) and not any(m["role"] == "assistant" for m in side)):
            raise row.error("holds no assistant's turn after the prompt", field=name)
    return Preference(prompt, chosen, rejected, _tools(row))


# ---------------------------------------------------------------- well-known data sets


def _instruction(row: Row, input_text: str) -> list[Message]:
    """The prompt of an instruction with its input."""
    text = _text(row, "instruction")
    return [{"role": "user", "content": f"{text}\n\n{input_text}" if input_text.strip() else text}]


def _of_alpaca(row: Row) -> list[ExampleKind]:
    input_text = row.fields.get("input")
    if input_text is not None and not isinstance(input_text, str):
        raise row.error(f"must be text, not {type(input_text).__name__}", field="input")
    return [Answered(_instruction(row, input_text or ""), [{"role": "assistant", "content": _text(row, "output")}])]


def _of_self_instruct(row: Row) -> list[ExampleKind]:
    instances = _get(row, "instances")
    if not isinstance(instances, list) or not instances:
        raise row.error("must be a non-empty list", field="instances")
    examples: list[ExampleKind] = []
    for i, instance in enumerate(instances):
        at = f"instances[{i}]"
        if not isinstance(instance, dict) or not all(isinstance(instance.get(k), str) for k in ("input", "output")):
            raise row.error("must be an object with the texts input and output", field=at)
        if not instance["output"].strip():
            raise row.error("is empty", field=f"{at}.output")
        answer: list[Message] = [{"role": "assistant", "content": instance["output"]}]
        examples.append(Answered(_instruction(row, instance["input"]), answer))
    return examples


_SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def _of_sharegpt(row: Row) -> list[ExampleKind]:
    turns = _get(row, "conversations")
    if not isinstance(turns, list):
        raise row.error(f"must be a list of turns, not {type(turns).__name__}", field="conversations")
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        at = f"conversations[{i}]"
        if not isinstance(turn, dict):
            raise row.error(f"must be an object, not {type(turn).__name__}", field=at)
        if "role" in turn:
            messages.append(turn)
            continue
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in _SHAREGPT:
            raise row.error(f"{speaker!r} is not a speaker (known: {', '.join(_SHAREGPT)})", field=f"{at}.from")
        messages.append({"role": _SHAREGPT[speaker], "content": turn.get("value")})
    content_key = "value" if any("role" not in turn for turn in turns) else "content"
    messages = _messages(row, "conversations", messages, content_key=content_key)
    system = row.fields.get("system")
    if isinstance(system, str) and system.strip():
        messages.insert(0, {"role": "system", "content": system})
    return [Chat(messages, _tools(row))]


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def _transcript(row: Row, name: str) -> list[Message]:
    """"\\n\\nHuman: ...\\n\\nAssistant: ..." as messages; consecutive turns of one speaker are joined."""
    text = _text(row, name)
    pieces = _SPEAKER.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise row.error("must be a transcript that begins with 'Human:'", field=name)
    messages: list[Message] = []
    for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content.strip()}".strip()
        else:
            messages.append({"role": role, "content": content.strip()})
    return messages


def _of_hh(row: Row) -> list[ExampleKind]:
    chosen, rejected = _transcript(row, "chosen"), _transcript(row, "rejected")
    n = _common(chosen, rejected)
    if n == 0:
        raise row.error("chosen and rejected share no prompt", field="rejected")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side[-1]["role"] != "assistant":
            raise row.error("does not end with an assistant's turn", field=name)
        _messages(row, name, side)
    return [_preference(row, chosen[:n], chosen[n:], rejected[n:])]


def _is_transcript(fields: Mapping[str, Any]) -> bool:
    """Whether `chosen` is a transcript in the form of hh-rlhf."""
    return isinstance(fields["chosen"], str) and _SPEAKER.match(fields["chosen"]) is not None


LAYOUTS: dict[str, Layout] = {
    "preference": Layout(("prompt", "chosen", "rejected"), _of_preference),
    "hh": Layout(("chosen", "rejected"), _of_hh, _is_transcript),
    "implicit": Layout(("chosen", "rejected"), _of_implicit, lambda fields: isinstance(fields["chosen"], list)),
    "labelled": Layout(("prompt", "completion", "label"), _of_labelled),
    "completion": Layout(("prompt", "completion"), _of_completion),
    "alpaca": Layout(("instruction", "output"), _of_alpaca),
    "self_instruct": Layout(("instruction", "instances"), _of_self_instruct),
    "messages": Layout(("messages",), _of_messages),
    "sharegpt": Layout(("conversations",), _of_sharegpt),
    "text": Layout(("text",), _of_text),
}


def check_layout(name: str | None) -> None:
    """Raises UserError on an unknown layout."""
    if name is not None and name not in LAYOUTS:
        raise UserError(f"{name!r} is not a layout", field="layout", hint=f"one of {', '.join(LAYOUTS)}")
