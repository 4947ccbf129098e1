"""The column "ref_logps": a frozen reference's log-probabilities of every answer, computed per batch or once for all.

The reference is a callable, `engine.freeze().forward` or `engine.forward(reference=True)`. Log-probabilities that are
computed once are saved in a file named by the hash of what they depend on (tokens, masks, the reference's weights).
Either way the numbers are a function of the data alone, so a resumed run reads the same numbers as an uninterrupted
one.
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
    """Copies of the units with the column "ref_logps", computed by the reference."""
    return _with_ref(units, [columns["logps"] for columns in reference(units)])


def kept(units: Sequence[Unit], reference: Reference, directory: Path, model: str) -> list[Unit]:
    """`filled`, with a file as cache: the log-probabilities are read from the file of these tokens, masks and this
    model, or computed and written to it. model: identifies the reference (the hash of its weights).

    Raises UserError if the file is damaged.
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
    """Writes the file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({REF: flat}, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path, n: int) -> Tensor:
    """The n log-probabilities of a file, [n]. Raises UserError if it is damaged."""
    hint = "delete the file; it will be computed again"
    try:
        flat = load_file(path)[REF]
    except (SafetensorError, KeyError) as err:
        raise UserError(f"is damaged: {err}", file=path, hint=hint) from err
    if flat.shape != (n,):
        raise UserError(f"holds {flat.numel()} log-probabilities, not {n}", file=path, hint=hint)
    return flat


def _with_ref(units: Sequence[Unit], logps: Sequence[Tensor]) -> list[Unit]:
    """Copies of the units with the column. logps: of each sequence, [T] each; of a pair, chosen before rejected."""
    remaining = iter(zip(sequences(units), logps, strict=True))

    def next_sample() -> Sample:
        sample, ref_logps_T = next(remaining)
        return replace(sample, cols=sample.cols | {REF: ref_logps_T})

    filled_units: list[Unit] = []
    for unit in units:
        if isinstance(unit, Pair):
            filled_units.append(replace(unit, chosen=next_sample(), rejected=next_sample()))
        else:
            filled_units.append(next_sample())
    assert next(remaining, None) is None
    return filled_units


def check_unfilled(units: Sequence[Unit]) -> None:
    """Raises UserError naming the first unit that already has the column."""
    for i, unit in enumerate(units):
        if any(REF in s.cols for s in sequences([unit])):
            raise UserError(
                f"{place_of(unit, i)} has the column {REF!r} already, and a reference is given",
                field="reference",
                hint="leave out the column or the reference",
            )


def place_of(unit: Unit, i: int) -> str:
    """The origin of a unit, for messages: its file and line, or its index i among the examples."""
    for meta in (unit.meta, *(s.meta for s in sequences([unit]))):
        if "origin" in meta:
            return str(meta["origin"])
    return f"example {i + 1}"
