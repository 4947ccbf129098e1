"""Tokenising and masking: for every chat template, exactly the assistant's content and terminator are trained."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from chat_templates import CORPUS, FAMILIES, GOLDEN, KEEPS_TURNS, NAMES, TALK, bot, bytelevel, shared, tokenizer, user
from ladder.base.errors import UserError
from ladder.data.chat import Encoder, encode_example, encode_prompt, leading_bos, stop_ids, terminator
from ladder.data.kinds import Answered, Chat, Labelled, Origin, Preference, Text


def trained(tok: Any, tokens: list[int], mask: list[bool]) -> str:
    return tok.decode([t for t, m in zip(tokens, mask, strict=True) if m])


# ---------------------------------------------------------------- every template


@pytest.mark.parametrize("name", KEEPS_TURNS)
def test_contents_and_terminators_are_trained_and_nothing_else(name: str) -> None:
    tok, end = shared(name), FAMILIES[name][3]
    tokens, mask = encode_example(tok, Chat(TALK))
    space = " " if name == "mistral" else ""  # its template puts a space before an answer, which is trained with it
    assert trained(tok, tokens, mask) == "".join(f"{space}{m['content']}{end}" for m in TALK[1::2])
    assert tok.decode(tokens) == tok.apply_chat_template(TALK, tokenize=False)
    assert leading_bos(tok, tokens) <= 1 and not mask[0]
    # two turns, two trained spans
    assert sum(a != b for a, b in itertools.pairwise(mask)) in (3, 4)


@pytest.mark.parametrize("name", NAMES)
def test_the_terminator_is_found_and_trained_even_if_it_is_the_pad_token(name: str) -> None:
    tok, end = shared(name), FAMILIES[name][3]
    assert terminator(tok) == end
    end_id = tok.convert_tokens_to_ids(end)
    tok.pad_token = end
    tokens, mask = encode_example(tok, Chat(TALK[:2]))
    assert [t for t, m in zip(tokens, mask, strict=True) if m][-1] == end_id
    assert stop_ids(tok) == sorted({end_id, tok.eos_token_id})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", ["Yes.", "\n\nYes.", "  Yes", "é☃", "\tYes\n"])
def test_the_tokens_before_an_answer_equal_the_encoded_prompt(name: str, answer: str) -> None:
    tok = shared(name)
    example = Chat([user("Hello"), bot(answer)])
    tokens, mask = encode_example(tok, example)
    prompt = encode_prompt(tok, example.messages[:1])
    assert tokens[: len(prompt)] == prompt
    assert mask.index(True) == len(prompt)
    assert tok.decode(tokens) == tok.apply_chat_template(example.messages, tokenize=False)
    if name in ("chatml", "chatml_marked", "smollm2"):
        assert trained(tok, tokens, mask) == answer + "<|im_end|>"


@pytest.mark.parametrize("name", NAMES)
def test_at_most_one_leading_bos(name: str) -> None:
    tok = shared(name)
    bos = FAMILIES[name][1]
    assert leading_bos(tok, encode_prompt(tok, TALK[:1])) == (bos is not None)
    adds = bos is not None and name != "smollm2"
    for text in ("Hello", (bos or "") + "Hello"):
        assert leading_bos(tok, encode_prompt(tok, text)) == (adds or text[:1] == "<")
        assert leading_bos(tok, encode_example(tok, Text(text))[0]) == (adds or text[:1] == "<")
        assert leading_bos(tok, encode_example(tok, Answered(text, " there"))[0]) == (adds or text[:1] == "<")


def test_a_template_with_two_bos_is_rejected() -> None:
    twice = tokenizer("llama3", template="{{ bos_token + bos_token }}" + (GOLDEN / "llama3.jinja").read_text())
    with pytest.raises(UserError, match="two BOS"):
        encode_prompt(twice, TALK[:1])


@pytest.mark.parametrize("name", NAMES)
def test_turns_last_trains_only_the_last_turn(name: str) -> None:
    tok, end = shared(name), FAMILIES[name][3]
    tokens, mask = encode_example(tok, Chat(TALK), turns="last")
    trained_text = trained(tok, tokens, mask)
    assert trained_text.endswith(TALK[-1]["content"] + end) and "The answer" not in trained_text


@pytest.mark.parametrize("name", NAMES)
def test_conversational_prompt_and_completion(name: str) -> None:
    tok = shared(name)
    tokens, mask = encode_example(tok, Answered(TALK[:3], TALK[3:]))
    same, last = encode_example(tok, Chat(TALK), turns="last")
    assert (tokens, mask) == (same, last)
    assert encode_example(tok, Labelled(TALK[:3], TALK[3:], True)) == (tokens, mask)


# ---------------------------------------------------------------- templates that rewrite earlier turns


def test_qwen3_removes_thinking_from_earlier_turns() -> None:
    tok = shared("qwen3")
    talk = [user("One?"), bot("<think>\nso\n</think>\n\nYes."), user("Two?"), bot("<think>\nhm\n</think>\n\nNo.")]
    with pytest.raises(UserError, match=r"rows.jsonl:7: messages\[1\]: .*renders this turn differently"):
        encode_example(tok, Chat(talk, origin=Origin("rows.jsonl", 7)))
    encoder = Encoder(tok, rewritten="skip")
    tokens, mask = encoder.example(Chat(talk))
    assert trained(tok, tokens, mask) == "<think>\nhm\n</think>\n\nNo.<|im_end|>"
    assert encoder.counts == {"turns": 1, "turns/rewritten": 1}
    assert encode_example(tok, Chat(talk), turns="last") == (tokens, mask)
    assert "so" not in tok.decode(tokens)


def test_qwen3_single_turn_keeps_its_thinking_block() -> None:
    tok = shared("qwen3")
    tokens, mask = encode_example(tok, Chat([user("One?"), bot("Yes.")]))
    assert trained(tok, tokens, mask) == "<think>\n\n</think>\n\nYes.<|im_end|>"


def test_a_conversation_that_begins_with_the_assistant() -> None:
    tok = shared("chatml")
    talk = [bot("Welcome."), user("Hi"), bot("Hello")]
    with pytest.raises(UserError, match="begins with an assistant's turn"):
        encode_example(tok, Chat(talk))
    tokens, mask = encode_example(tok, Chat(talk), rewritten="skip")
    assert trained(tok, tokens, mask) == "Hello<|im_end|>"


# ---------------------------------------------------------------- templates without a usable terminator


def test_markers_without_the_terminator_are_rejected() -> None:
    template = (GOLDEN / "chatml_marked.jinja").read_text()
    bad = template.replace(
        "{{- m.content + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}",
        "{{- m.content -}}{%- endgeneration -%}{{- '<|im_end|>\\n' -}}",
    )
    assert bad != template
    with pytest.raises(UserError, match="would not learn to stop"):
        encode_example(tokenizer("chatml_marked", template=bad), Chat(TALK))


def test_a_template_without_a_terminator_is_rejected() -> None:
    bare = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    bare += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    with pytest.raises(UserError, match="ends an assistant's turn with nothing"):
        encode_example(tokenizer("chatml", template=bare), Chat(TALK))


def test_a_terminator_on_the_last_turn_only_is_rejected() -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content }}"
    template += "{% if loop.last and m.role == 'assistant' %}{{ eos_token }}{% endif %}{{'\n'}}"
    template += "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    tok = tokenizer("chatml", template=template)
    with pytest.raises(UserError, match="differently"):
        encode_example(tok, Chat(TALK))
    tokens, mask = encode_example(tok, Chat(TALK), turns="last")
    assert trained(tok, tokens, mask) == " 1 + 3 = 4. Hello ☃!<|endoftext|>"


def test_a_terminator_of_several_tokens_is_rejected_as_stop_token() -> None:
    long = "{% for m in messages %}{{ m.role + ': ' + m.content + ' THE END\n' }}{% endfor %}"
    with pytest.raises(UserError, match="tokens, not one"):
        stop_ids(tokenizer("chatml", template=long))


# ---------------------------------------------------------------- rows that are rejected


def test_messages_need_a_chat_template() -> None:
    tok = tokenizer("chatml", template="")
    calls = (lambda: encode_prompt(tok, TALK[:1]), lambda: encode_example(tok, Chat(TALK)), lambda: terminator(tok))
    for call in calls:
        with pytest.raises(UserError, match=r"needs? a chat template.*Hint"):
            call()


@pytest.mark.parametrize("name", NAMES)
def test_a_special_token_in_the_content_is_rejected(name: str) -> None:
    end = FAMILIES[name][3]
    with pytest.raises(UserError, match=r"a.jsonl:3: messages\[0\].content: holds"):
        encode_example(shared(name), Chat([user(f"x{end}y"), bot("z")], origin=Origin("a.jsonl", 3)))
    with pytest.raises(UserError, match="holds"):
        encode_prompt(shared(name), [user(f"x{end}")])


def test_a_conversation_that_the_template_rejects_is_reported() -> None:
    with pytest.raises(UserError, match=r"a.jsonl:3: messages: .*System role not supported"):
        encode_example(
            shared("gemma"), Chat([{"role": "system", "content": "x"}, *TALK], origin=Origin("a.jsonl", 3))
        )


def test_a_conversation_without_an_answer_has_no_trained_token() -> None:
    _, mask = encode_example(shared("chatml"), Chat([user("Hi")]))
    assert not any(mask)


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("name", NAMES)
def test_plain_completion_and_eos_are_trained(name: str) -> None:
    tok, eos = shared(name), FAMILIES[name][2]
    for prompt, completion in (("What is two?", " It is"), ("line\n", "\nline"), ("x ", " y"), ("", "Hello there")):
        tokens, mask = encode_example(tok, Answered(prompt, completion))
        trained_text = trained(tok, tokens, mask)
        if prompt:
            head = encode_prompt(tok, prompt)
            assert tokens[: len(head)] == head and mask.index(True) == len(head)
            assert trained_text == completion + eos
        assert tokens[-1] == tok.eos_token_id and mask[-1] and not mask[0]
    once, _ = encode_example(tok, Answered("x", " y" + eos))
    assert once == encode_example(tok, Answered("x", " y"))[0]


def test_an_empty_completion_has_no_trained_token() -> None:
    tokens, mask = encode_example(shared("llama3"), Answered("Hello", ""))
    assert tokens == encode_prompt(shared("llama3"), "Hello") and not any(mask)


def test_a_document_is_trained_to_its_end() -> None:
    tok = shared("llama3")
    tokens, mask = encode_example(tok, Text("Hello there"))
    assert tok.decode(tokens) == "<|begin_of_text|>Hello there<|eot_id|>"
    assert mask == [False, *[True] * (len(tokens) - 1)]


def test_chat_template_renders_text_as_a_turn() -> None:
    tok = shared("chatml")
    assert encode_prompt(tok, "Hi", chat_template=True) == encode_prompt(tok, [user("Hi")])
    chat = Chat([user("Hi"), bot("Yes")])
    assert encode_example(tok, Answered("Hi", "Yes"), chat_template=True) == encode_example(tok, chat)


def test_a_missing_eos_is_reported() -> None:
    tok = PreTrainedTokenizerFast(tokenizer_object=bytelevel(("<x>",), None))
    with pytest.raises(UserError, match="no EOS"):
        encode_example(tok, Text("Hello"))


def metaspace() -> Any:
    """A tokenizer like SentencePiece's: it puts a space before every text."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    t.decoder = decoders.Metaspace(prepend_scheme="always")
    t.train_from_iterator(CORPUS * 4, trainers.BpeTrainer(vocab_size=200, special_tokens=["</s>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=t, eos_token="</s>")


def test_a_tokenizer_that_cannot_split_the_text_is_an_error() -> None:
    tok = metaspace()
    tokens, mask = encode_example(tok, Answered("Hello", " there"))
    assert tok.decode(tokens[:-1]) == "Hello there" and trained(tok, tokens[:-1], mask[:-1]) == "there"
    with pytest.raises(UserError, match=r"meet inside a token.*Hint: move the space"):
        encode_example(tok, Answered("Hello ", "there"))


def test_pairs_share_their_prompt() -> None:
    tok = shared("chatml")
    for chosen, rejected in (("\nYes", "No"), ("Yes", "Yes, no")):
        (a, a_mask), (b, b_mask) = Encoder(tok).pair(Preference([user("Hi")], [bot(chosen)], [bot(rejected)]))
        k = a_mask.index(True)
        assert b_mask.index(True) == k and a[:k] == b[:k] == encode_prompt(tok, [user("Hi")])


def test_word_level_vocabulary() -> None:
    words = ["<pad>", "<bos>", "<eos>", "a", "b", "=", "c"]
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tok = PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    assert encode_prompt(tok, "a b =") == [1, 3, 4, 5]
    assert encode_example(tok, Answered("a b =", " c")) == ([1, 3, 4, 5, 6, 2], [False] * 4 + [True] * 2)
    assert encode_example(tok, Text("a b")) == ([1, 3, 4, 2], [False, True, True, True])
