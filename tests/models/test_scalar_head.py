"""Models with a scalar head: made from a language model, trained by the engine, and loaded by plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from ladder.base.errors import UserError
from ladder.contract.training import Sample
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import ValueClip
from ladder.models.head import head_of
from ladder.models.load import LoadedModel, load_model, save_model, wrap_tokenizer
from ladder.models.lora import LoRA, attach
from ladder.pipeline.loop import write_model
from ladder.tasks.chain import words


@pytest.fixture()
def scalar(tmp_path: Path) -> LoadedModel:
    tokenizer = wrap_tokenizer(words.tokenizer(), bos="<s>", eos="</s>", pad="<pad>")
    save_model(load_model("preset:chain", tokenizer=tokenizer), tmp_path / "lm")
    return load_model(str(tmp_path / "lm"), scalar=True)


def samples(lengths: list[int], seed: int = 0) -> list[Sample]:
    """Sequences with one more token than the answer: the column entry at that token holds the score."""
    g = torch.Generator().manual_seed(seed)
    sequences = []
    for n in lengths:
        tokens = torch.randint(3, 40, (n + 1,), generator=g)
        mask = torch.zeros(n + 1, dtype=torch.bool)
        mask[n] = True
        sequences.append(Sample(tokens, mask, {"returns": torch.ones(n + 1), "old_values": torch.zeros(n + 1)}))
    return sequences


def train_a_little(loaded: LoadedModel) -> Engine:
    engine = Engine(loaded.model, Optim(lr=1e-2))
    for _ in range(5):
        engine.update(samples([5, 9, 7]), ValueClip(clip=10.0))
    return engine


def test_scores_start_at_zero_and_learn(scalar: LoadedModel) -> None:
    before = Engine(scalar.model).forward(samples([5, 9]))
    assert all(float(c["values"].abs().max()) == 0 for c in before)
    engine = train_a_little(scalar)
    after = [float(c["values"][-1]) for c in engine.forward(samples([5, 9, 7]))]
    assert min(after) > 0.2, after


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("adapter", [False, True])
def test_plain_transformers_reads_the_same_scores(
    scalar: LoadedModel, tmp_path: Path, side: str, adapter: bool
) -> None:
    if adapter:
        scalar.model = attach(scalar.model, LoRA(rank=4, targets="all-linear"), seed=0)
    engine = train_a_little(scalar)
    if adapter:
        outside_adapter = [name for name in engine.trained if "lora_" not in name]
        assert len(outside_adapter) == 1 and ".score." in outside_adapter[0], "only adapter and score head are trained"
    units = samples([5, 9, 7, 1])
    ours = [float(c["values"][-1]) for c in engine.forward(units)]
    write_model(tmp_path / "rm", scalar)
    assert not adapter or (tmp_path / "adapter" / "adapter_config.json").exists()
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert theirs.config.num_labels == 1
    pad = theirs.config.pad_token_id
    rows = [u.tokens[:-1] for u in units]
    widest = max(map(len, rows))
    padded = torch.full((len(rows), widest), pad)
    for i, row in enumerate(rows):
        padded[i, slice(widest - len(row), None) if side == "left" else slice(0, len(row))] = row
    with torch.no_grad():
        alone = [float(theirs(input_ids=row[None]).logits[0, 0]) for row in rows]
        batch = theirs(input_ids=padded, attention_mask=(padded != pad).long()).logits[:, 0].tolist()
    assert alone == pytest.approx(ours, abs=1e-4)
    assert batch == pytest.approx(ours, abs=1e-4)


def test_a_saved_score_is_kept(scalar: LoadedModel, tmp_path: Path) -> None:
    train_a_little(scalar)
    save_model(scalar, tmp_path / "rm")
    again = load_model(str(tmp_path / "rm"), scalar=True)
    for (name, a), (_, b) in zip(scalar.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_pad_token_ends_no_answer(tmp_path: Path) -> None:
    tokenizer = wrap_tokenizer(words.tokenizer(), bos="<s>", eos="</s>", pad="</s>")
    save_model(load_model("preset:chain", tokenizer=tokenizer), tmp_path / "lm")
    loaded = load_model(str(tmp_path / "lm"), scalar=True)
    assert loaded.model.config.pad_token_id not in loaded.eos  # pyright: ignore


def test_several_labels_are_refused(scalar: LoadedModel) -> None:
    scalar.model.score = torch.nn.Linear(64, 3)
    with pytest.raises(UserError, match="one number"):
        head_of(scalar.model)
