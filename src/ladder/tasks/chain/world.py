"""What the chain world brings beside its problems: two rewards, filters, figures of notation, a tokenizer."""

from __future__ import annotations

from typing import Any

from ladder.contract.rollouts import Task
from ladder.tasks.chain import answers, words
from ladder.tasks.chain.gold import gold
from ladder.tasks.world import SpecialTokens, World


def holds(source: Any, task: Task) -> bool:
    """Whether a problem has as many steps as those of a source."""
    return source.steps[0] <= task.meta.get("steps", -1) <= source.steps[1]


WORLD = World(
    name="chain",
    rewards={"chain": answers.correct, "chain_gold": gold},
    filters={
        "clean": lambda r: answers.is_clean(r.text),
        "offhand": lambda r: not answers.is_worked(r.text),
    },
    figures=answers.text_stats,
    tokenizer=words.tokenizer,
    special=SpecialTokens(bos="<s>", eos="</s>", pad="<pad>"),
    holds=holds,
)
