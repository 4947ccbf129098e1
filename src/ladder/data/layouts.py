"""The layouts that rows come in, how each is recognised, and how it becomes the normal form of its kind.

The field's own column names (TRL's): `text`; `messages`; `prompt`, `completion`; `prompt`, `chosen`, `rejected` (the
prompt may also be the common beginning of both); `prompt`, `completion`, `label`. And the layouts of well-known data:
Alpaca (`instruction`, `input`, `output`), the self-instruct seeds (`instruction`, `instances`), ShareGPT
(`conversations` of `from`, `value`) and hh-rlhf (`chosen`, `rejected` as transcripts). Other columns are ignored.

A layout is recognised by its columns in the first row, in the order of `LAYOUTS`: the more specific first. Adding one
is one function and one entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ladder.base.errors import UserError
from ladder.contract.rollouts import Message
from ladder.data.kinds import Answered, Chat, Content, Kind, Labelled, Preference, Text
from ladder.data.rows import Row

ROLES = {"system", "developer", "user", "assistant", "tool"}


@dataclass(frozen=True, slots=True)
class Layout:
    """columns: what a row must have. convert: a row to the examples in it. fits: more than the columns can tell."""

    columns: tuple[str, ...]
    convert: Callable[[Row], list[Kind]]
    fits: Callable[[Mapping[str, Any]], bool] = lambda fields: True


def recognise(row: Row) -> str:
    """The name of the layout of a row. Raises UserError naming its columns and the layouts there are."""
    fields = {k for k, v in row.fields.items() if v is not None}
    for name, layout in LAYOUTS.items():
        if fields.issuperset(layout.columns) and layout.fits(row.fields):
            return name
    known = "; ".join(f"{name}: {', '.join(layout.columns)}" for name, layout in LAYOUTS.items())
    hint = "rename them (columns: {prompt: question, completion: answer}, say)"
    if {"prompt", "answer"} <= fields:
        hint = "for imitation rename (columns: {completion: answer}); rows of prompt and answer are tasks for rewards"
    raise row.error(
        f"the columns {', '.join(sorted(fields)) or '(none)'} are no layout known here ({known})", hint=hint
    )


def convert(row: Row, layout: str) -> list[Kind]:
    """The examples in a row, which know where they came from. Raises UserError naming the field."""
    return [made.at(row.origin) for made in LAYOUTS[layout].convert(row)]


# ---------------------------------------------------------------- fields


def _get(row: Row, name: str) -> Any:
    value = row.fields.get(name)
    if value is None:
        there = ", ".join(k for k, v in row.fields.items() if v is not None)
        raise row.error(f"is missing (the row has: {there or 'nothing'})", field=name)
    return value


def _text(row: Row, name: str, *, blank: bool = False) -> str:
    value = _get(row, name)
    if not isinstance(value, str):
        raise row.error(f"must be text, not {type(value).__name__}", field=name)
    if not blank and not value.strip():
        raise row.error("is empty", field=name)
    return value


def _messages(row: Row, name: str, value: Any, *, said: str = "content") -> list[Message]:
    """Checked messages. A message's other keys (tool_calls, name, ...) are kept for the template. said: what the data
    calls a message's content."""
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
            raise row.error(f"{role!r} is no role (there are: {', '.join(sorted(ROLES))})", field=f"{at}.role")
        calls = message.get("tool_calls")
        if content is None and role == "assistant" and calls:
            continue
        if not isinstance(content, str):
            kind = "missing" if content is None else type(content).__name__
            raise row.error(f"must be text, not {kind}", field=f"{at}.{said}")
        if not content.strip() and not calls and role in ("user", "assistant"):
            raise row.error("is empty", field=f"{at}.{said}")
    # typed tables have every key in every message, null where it is not
    return [{k: v for k, v in m.items() if v is not None} | {"content": m.get("content") or ""} for m in value]


def _content(row: Row, name: str, *, answer: bool = False) -> Content:
    """Text or messages; an answer has something to train on."""
    value = _get(row, name)
    if isinstance(value, str):
        return _text(row, name)
    if not isinstance(value, list):
        raise row.error(f"must be text or a list of messages, not {type(value).__name__}", field=name)
    made = _messages(row, name, value)
    if answer and not any(m["role"] == "assistant" for m in made):
        raise row.error("holds no assistant's turn", field=name)
    return made


def _answer(row: Row, name: str, prompt: Content) -> Content:
    made = _content(row, name, answer=True)
    if isinstance(made, str) != isinstance(prompt, str):
        raise row.error("prompt and answer must both be text or both be messages", field=name)
    return made


def _tools(row: Row) -> list[dict[str, Any]] | None:
    tools = row.fields.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise row.error("must be a list of JSON schemas", field="tools")
    return tools or None


# ---------------------------------------------------------------- the field's own


def _of_text(row: Row) -> list[Kind]:
    return [Text(_text(row, "text"))]


def _of_messages(row: Row) -> list[Kind]:
    made = _messages(row, "messages", _get(row, "messages"))
    return [Chat(made, _tools(row))]


def _of_completion(row: Row) -> list[Kind]:
    prompt = _content(row, "prompt")
    return [Answered(prompt, _answer(row, "completion", prompt), _tools(row))]


def _of_labelled(row: Row) -> list[Kind]:
    label = _get(row, "label")
    if not isinstance(label, bool):
        raise row.error(f"must be true or false, not {label!r}", field="label")
    prompt = _content(row, "prompt")
    return [Labelled(prompt, _answer(row, "completion", prompt), label, _tools(row))]


def _of_preference(row: Row) -> list[Kind]:
    prompt = _content(row, "prompt")
    chosen, rejected = _content(row, "chosen", answer=True), _content(row, "rejected", answer=True)
    if isinstance(prompt, str) and isinstance(chosen, list) and isinstance(rejected, list):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and isinstance(chosen, list) and isinstance(rejected, list):
        n = len(prompt)
        if chosen[:n] == prompt == rejected[:n]:  # the prompt is written out once more in both
            chosen, rejected = chosen[n:], rejected[n:]
    if len({isinstance(c, str) for c in (prompt, chosen, rejected)}) > 1:
        raise row.error("prompt, chosen and rejected must all be text or all be messages", field="chosen")
    return [_preference(row, prompt, chosen, rejected)]


def _of_implicit(row: Row) -> list[Kind]:
    """Whole conversations: the prompt is what they begin with in common."""
    chosen = _messages(row, "chosen", _get(row, "chosen"))
    rejected = _messages(row, "rejected", _get(row, "rejected"))
    n = _common(chosen, rejected)
    if not n:
        raise row.error("chosen and rejected share no prompt", field="rejected", hint="give a column `prompt`")
    return [_preference(row, chosen[:n], chosen[n:], rejected[n:])]


def _common(a: list[Message], b: list[Message]) -> int:
    """How many messages two conversations share, the last of each left out."""
    n = 0
    while n < min(len(a), len(b)) - 1 and a[n] == b[n]:
        n += 1
    return n


def _preference(row: Row, prompt: Content, chosen: Content, rejected: Content) -> Preference:
    if chosen == rejected:
        raise row.error("chosen and rejected are the same", field="rejected", hint="leave the row out")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or (isinstance(side, list) and not any(m["role"] == "assistant" for m in side)):
            raise row.error("holds no assistant's turn after the prompt", field=name)
    return Preference(prompt, chosen, rejected, _tools(row))


# ---------------------------------------------------------------- well-known data


def _instruction(row: Row, given: str) -> list[Message]:
    text = _text(row, "instruction")
    return [{"role": "user", "content": f"{text}\n\n{given}" if given.strip() else text}]


def _of_alpaca(row: Row) -> list[Kind]:
    given = row.fields.get("input")
    if given is not None and not isinstance(given, str):
        raise row.error(f"must be text, not {type(given).__name__}", field="input")
    return [Answered(_instruction(row, given or ""), [{"role": "assistant", "content": _text(row, "output")}])]


def _of_self_instruct(row: Row) -> list[Kind]:
    instances = _get(row, "instances")
    if not isinstance(instances, list) or not instances:
        raise row.error("must be a list that is not empty", field="instances")
    made: list[Kind] = []
    for i, one in enumerate(instances):
        at = f"instances[{i}]"
        if not isinstance(one, dict) or not all(isinstance(one.get(k), str) for k in ("input", "output")):
            raise row.error("must be an object with the texts input and output", field=at)
        if not one["output"].strip():
            raise row.error("is empty", field=f"{at}.output")
        answer: list[Message] = [{"role": "assistant", "content": one["output"]}]
        made.append(Answered(_instruction(row, one["input"]), answer))
    return made


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


def _of_sharegpt(row: Row) -> list[Kind]:
    turns = _get(row, "conversations")
    if not isinstance(turns, list):
        raise row.error(f"must be a list of turns, not {type(turns).__name__}", field="conversations")
    made: list[Message] = []
    for i, turn in enumerate(turns):
        at = f"conversations[{i}]"
        if not isinstance(turn, dict):
            raise row.error(f"must be an object, not {type(turn).__name__}", field=at)
        if "role" in turn:
            made.append(turn)
            continue
        who = turn.get("from")
        if not isinstance(who, str) or who not in _SHAREGPT:
            raise row.error(f"{who!r} is no speaker (there are: {', '.join(_SHAREGPT)})", field=f"{at}.from")
        made.append({"role": _SHAREGPT[who], "content": turn.get("value")})
    said = "value" if any("role" not in turn for turn in turns) else "content"
    made = _messages(row, "conversations", made, said=said)
    system = row.fields.get("system")
    if isinstance(system, str) and system.strip():
        made.insert(0, {"role": "system", "content": system})
    return [Chat(made, _tools(row))]


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def _transcript(row: Row, name: str) -> list[Message]:
    """"\\n\\nHuman: ...\\n\\nAssistant: ..." as messages; turns of one speaker in a row become one."""
    text = _text(row, name)
    pieces = _SPEAKER.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise row.error("must be a transcript that begins with 'Human:'", field=name)
    made: list[Message] = []
    for who, said in zip(pieces[1::2], pieces[2::2], strict=True):
        role = "user" if who == "Human" else "assistant"
        if made and made[-1]["role"] == role:
            made[-1]["content"] = f"{made[-1]['content']}\n\n{said.strip()}".strip()
        else:
            made.append({"role": role, "content": said.strip()})
    return made


def _of_hh(row: Row) -> list[Kind]:
    chosen, rejected = _transcript(row, "chosen"), _transcript(row, "rejected")
    n = _common(chosen, rejected)
    if n == 0:
        raise row.error("chosen and rejected share no prompt", field="rejected")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side[-1]["role"] != "assistant":
            raise row.error("does not end with the assistant", field=name)
        _messages(row, name, side)
    return [_preference(row, chosen[:n], chosen[n:], rejected[n:])]


def _transcripts(fields: Mapping[str, Any]) -> bool:
    return isinstance(fields["chosen"], str) and _SPEAKER.match(fields["chosen"]) is not None


LAYOUTS: dict[str, Layout] = {
    "preference": Layout(("prompt", "chosen", "rejected"), _of_preference),
    "hh": Layout(("chosen", "rejected"), _of_hh, _transcripts),
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
    """Raises UserError for a layout there is not."""
    if name is not None and name not in LAYOUTS:
        raise UserError(f"{name!r} is no layout", field="layout", hint=f"one of {', '.join(LAYOUTS)}")
