"""The column "ref_logps": what a frozen reference says of every answer, asked for each batch or once for all.

The reference is a callable, `engine.freeze().forward` or `engine.forward(reference=True)`. What is asked once is kept
in a file named by the hash of what it is of (tokens, masks, the reference's weights). Either way the numbers are a
function of the data alone, so a run that is resumed sees the numbers of one that was not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ladder.base.errors import UserError
from ladder.contract.training import Pair, Reference, Sample, Unit
from ladder.packing.pack import sequences
from ladder.signals.examples import digest

REF = "ref_logps"


def filled(units: Sequence[Unit], reference: Reference) -> list[Unit]:
    """The units with "ref_logps"; those given are left as they are."""
    return _with_ref(units, [columns["logps"] for columns in reference(units)])


def kept(units: Sequence[Unit], reference: Reference, directory: Path, model: str) -> list[Unit]:
    """`filled`, from a file when there is one of these tokens, masks and this model, and else into it.

    Raises UserError when the file is damaged.
    """
    path = directory / f"{digest(units, model)}.safetensors"
    masks = [s.mask for s in sequences(units)]
    if not path.exists():
        logps = [columns["logps"] for columns in reference(units)]
        _write(path, torch.cat([x[m] for x, m in zip(logps, masks, strict=True)]))
    flat = _read(path, sum(int(m.sum()) for m in masks))
    parts = flat.split([int(m.sum()) for m in masks])
    return _with_ref(units, [torch.zeros(len(m)).masked_scatter_(m, p) for m, p in zip(masks, parts, strict=True)])


def _write(path: Path, flat: Tensor) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({REF: flat}, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path, n: int) -> Tensor:
    hint = "delete it; it will be computed again"
    try:
        flat = load_file(path)[REF]
    except (SafetensorError, KeyError) as err:
        raise UserError(f"is damaged: {err}", file=path, hint=hint) from err
    if flat.shape != (n,):
        raise UserError(f"holds {flat.numel()} log-probabilities, not {n}", file=path, hint=hint)
    return flat


def _with_ref(units: Sequence[Unit], logps: Sequence[Tensor]) -> list[Unit]:
    said = iter(zip(sequences(units), logps, strict=True))

    def next_one() -> Sample:
        sample, ref = next(said)
        return replace(sample, cols=sample.cols | {REF: ref})

    made: list[Unit] = []
    for unit in units:
        made.append(replace(unit, chosen=next_one(), rejected=next_one()) if isinstance(unit, Pair) else next_one())
    assert next(said, None) is None
    return made


def check_unfilled(units: Sequence[Unit]) -> None:
    """Raises UserError naming the first unit that has the column already."""
    for i, unit in enumerate(units):
        if any(REF in s.cols for s in sequences([unit])):
            raise UserError(
                f"{place_of(unit, i)} has the column {REF!r} already, and a reference is given",
                field="reference",
                hint="take one of them out",
            )


def place_of(unit: Unit, i: int) -> str:
    """Where a unit came from, for people; i: its place among the others."""
    for meta in (unit.meta, *(s.meta for s in sequences([unit]))):
        if "origin" in meta:
            return str(meta["origin"])
    return f"example {i + 1}"
