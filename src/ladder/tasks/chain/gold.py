"""The gold reward of the preference experiments: the true quality of an answer, which training never sees.

    gold = right + 0.5 form + 0.5 brevity                                          within [0, 2]
    form      1 if the answer is worked step by step in one notation
    brevity   1 for the shortest worked answer (two words per step), linear to 0 at twice the words of a full one

Simulated annotators compare answers by it, with errors (`pipeline/kinds/annotate.py`); a reward model trained on their
labels is the proxy reward.
"""

from __future__ import annotations

from collections.abc import Sequence

from ladder.contract.rollouts import Outcome, Rollout, Score
from ladder.tasks.chain.answers import is_mixed, is_right, is_worked

FORM, BREVITY = 0.5, 0.5


def gold(group: Sequence[Rollout]) -> list[Outcome]:
    """The reward `chain_gold`."""
    return [_score(r) for r in group]


def _score(r: Rollout) -> Score:
    right = float(is_right(r.text, r.stop, str(r.task.answer)))
    form = float(is_worked(r.text) and not is_mixed(r.text))
    brevity = short(len(r.text.split()), int(r.task.meta["steps"]))
    value = right + FORM * form + BREVITY * brevity
    return Score(value, {"right": right, "form": form, "brevity": brevity})


def short(words: int, steps: int) -> float:
    """The brevity of an answer: 1 up to two words per step and two for the answer, 0 from eight per step and two."""
    least, most = 2 * steps + 2, 8 * steps + 2
    return min(1.0, max(0.0, (most - words) / (most - least)))
