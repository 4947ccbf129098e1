"""The output of `ladder inspect`: rows as the model will see them, coloured by which tokens are trained.

Trained tokens are green, context is plain, special tokens are in reverse video (bold if trained). Trained line ends are
marked with an arrow, and control characters are escaped, so that the contents of a file cannot send commands to the
terminal. A line of counts follows each row: tokens, trained tokens, leading BOS, and whether the terminator is trained.
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
from ladder.data.kinds import ExampleKind, Preference
from ladder.data.samples import Encoding, to_pairs, to_samples
from ladder.data.source import Data, Report

TRAINED, CONTEXT = "green", "default"
SPECIAL, SPECIAL_TRAINED = "reverse dim", "reverse bold green"


def render(tokenizer: Any, sample: Sample) -> Text:
    """The sample's text, styled by the mask, and a line of counts."""
    special = set(tokenizer.all_special_ids)
    special |= {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    ids, mask = sample.tokens.tolist(), sample.mask.tolist()
    text = Text()
    # consecutive tokens of one style are decoded together, because a character may span several tokens
    for (trained, is_special), run in groupby(zip(ids, mask, strict=True), lambda p: (p[1], p[0] in special)):
        tokens = [t for t, _ in run]
        decoded = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        style = (SPECIAL_TRAINED if trained else SPECIAL) if is_special else TRAINED if trained else CONTEXT
        text.append(visible(decoded, arrows=trained), style)
    text.append("\n")
    text.append(summary(tokenizer, sample), "dim")
    return text


def summary(tokenizer: Any, sample: Sample) -> str:
    """The line of counts of a sample."""
    trained = int(sample.mask.sum())
    stops = stop_ids(tokenizer)
    terminated = bool(trained) and int(sample.tokens[sample.mask][-1]) in stops
    line = (
        f"tokens {len(sample.tokens):,} · trained {trained:,} · BOS {leading_bos(tokenizer, sample.tokens.tolist())}"
        f" · terminator trained: {'yes' if terminated else 'no'}"
    )
    return line + (f" · label {sample.meta['label']}" if "label" in sample.meta else "")


def visible(text: str, *, arrows: bool) -> str:
    """Text that is safe to print: control characters are escaped. arrows: whether line ends are marked."""
    shown = "".join(c if c in "\n\t" or c.isprintable() else _escaped(c) for c in text)
    return shown.replace("\n", "↵\n") if arrows else shown


def _escaped(char: str) -> str:
    """The escape of a character that is not printable; joiners, variation selectors and wide spaces are kept."""
    return char if char in "\u200d\ufe0f" or (char.isspace() and ord(char) >= 0xA0) else f"\\x{ord(char):02x}"


def inspect_file(
    path: str | Data, tokenizer: Any, rows: int, console: Console, encoding: Encoding | None = None
) -> Report:
    """Prints the first rows of a file as they would be trained. Raises the same UserErrors as loading them."""
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
    example: ExampleKind, tokenizer: Any, encoding: Encoding | None, report: Report
) -> list[tuple[str, Sample]]:
    """The samples of an example with their titles: file and line, and the side of a preference."""
    # without the directory: a title is truncated to the terminal's width, which would cut off the line number
    place = "" if example.origin is None else f"{PurePath(example.origin.file).name}:{example.origin.line}"
    if isinstance(example, Preference):
        pairs = to_pairs([example], tokenizer, encoding, report)
        return [(f"{place} {name}", s) for p in pairs for name, s in (("chosen", p.chosen), ("rejected", p.rejected))]
    return [(place, sample) for sample in to_samples([example], tokenizer, encoding, report)]
