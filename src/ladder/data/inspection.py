"""What `ladder inspect` shows: a row as the model will see it, and in colour which of its tokens are trained.

Trained tokens are green, context is plain, special tokens are framed (bold when trained). Line ends that are trained
are marked with an arrow, and control characters are spelled out: what a file holds never reaches the terminal as a
command. Below each row stand its counts: tokens, trained tokens, leading BOS, and whether the terminator is trained.
"""

from __future__ import annotations

from itertools import groupby, islice
from pathlib import PurePath
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from ladder.contract.training import Sample
from ladder.data.chat import leading_bos, stop_ids
from ladder.data.kinds import Kind, Preference
from ladder.data.samples import Encoding, to_pairs, to_samples
from ladder.data.source import Data, Report

TRAINED, CONTEXT = "green", "default"
SPECIAL, SPECIAL_TRAINED = "reverse dim", "reverse bold green"


def render(tokenizer: Any, sample: Sample) -> Text:
    """The sample's text, styled by what is trained, and a line of counts."""
    special = set(tokenizer.all_special_ids)
    special |= {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    ids, mask = sample.tokens.tolist(), sample.mask.tolist()
    text = Text()
    # neighbours of one sort are decoded together: a character may be spread over several tokens
    for (trained, is_special), run in groupby(zip(ids, mask, strict=True), lambda p: (p[1], p[0] in special)):
        tokens = [t for t, _ in run]
        words = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        style = (SPECIAL_TRAINED if trained else SPECIAL) if is_special else TRAINED if trained else CONTEXT
        text.append(visible(words, arrows=trained), style)
    text.append("\n")
    text.append(summary(tokenizer, sample), "dim")
    return text


def summary(tokenizer: Any, sample: Sample) -> str:
    """The line of counts."""
    trained = int(sample.mask.sum())
    stops = stop_ids(tokenizer)
    ends = bool(trained) and int(sample.tokens[sample.mask][-1]) in stops
    line = (
        f"tokens {len(sample.tokens):,} · trained {trained:,} · BOS {leading_bos(tokenizer, sample.tokens.tolist())}"
        f" · terminator trained: {'yes' if ends else 'no'}"
    )
    return line + (f" · label {sample.meta['label']}" if "label" in sample.meta else "")


def visible(text: str, *, arrows: bool) -> str:
    """Text that is safe to print: control characters are spelled out, and line ends marked if asked for."""
    shown = "".join(c if c in "\n\t" or c.isprintable() else _spelled(c) for c in text)
    return shown.replace("\n", "↵\n") if arrows else shown


def _spelled(char: str) -> str:
    return char if char in "\u200d\ufe0f" or (char.isspace() and ord(char) >= 0xA0) else f"\\x{ord(char):02x}"


def inspect_file(
    path: str | Data, tokenizer: Any, rows: int, console: Console, encoding: Encoding | None = None
) -> Report:
    """Prints the first rows of a file as they are trained on. Raises UserError as loading them would."""
    data = path if isinstance(path, Data) else Data(path=path)
    report = Report()
    for example in islice(data.examples(report), rows):
        for title, sample in _titled(example, tokenizer, encoding, report):
            console.print(Rule(Text(visible(title, arrows=False)), align="left", style="dim"))
            console.print(render(tokenizer, sample), soft_wrap=True)
    console.print(Rule(style="dim"))
    legend = Text("trained", TRAINED).append("  context", CONTEXT).append("  ").append("special", SPECIAL)
    console.print(legend.append("  ").append("special, trained", SPECIAL_TRAINED))
    for line in report.lines():
        console.print(Text(visible(line, arrows=False)))
    return report


def _titled(
    example: Kind, tokenizer: Any, encoding: Encoding | None, report: Report
) -> list[tuple[str, Sample]]:
    # the file's last name: a title is cut to the terminal's width, and the line is what matters
    place = "" if example.origin is None else f"{PurePath(example.origin.file).name}:{example.origin.line}"
    if isinstance(example, Preference):
        pairs = to_pairs([example], tokenizer, encoding, report)
        return [(f"{place} {name}", s) for p in pairs for name, s in (("chosen", p.chosen), ("rejected", p.rejected))]
    return [(place, sample) for sample in to_samples([example], tokenizer, encoding, report)]
