"""The comparison on a GPU, without one: what comes first, what a failure leaves, what is counted, what is written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.speed import gpu, gpu_inputs, gpu_limits, gpu_report, processes, traffic
from benchmarks.speed.gpu_workloads import BUDGET, Setting, shorn, workloads
from benchmarks.speed.processes import Failed, Place
from benchmarks.speed.workload import Side


def arguments(**more: Any) -> argparse.Namespace:
    given = {"models": ["0.5b", "1.5b"], "device": "cuda", "quick": False, "only": None, "sides": None}
    return argparse.Namespace(**given | more)


def test_ours_and_the_first_peer_of_every_workload_come_before_the_others() -> None:
    turns = gpu.turns(arguments())
    first = turns[: 2 * 2 * len(workloads(Setting("0.5b", "cuda")))]
    assert [t.side.role == "ours" for t in first] == [True, False] * (len(first) // 2)
    assert not any(t.side.role == "ours" for t in turns[len(first) :])
    assert len({t.name for t in turns}) == len(turns)


def test_sides_are_chosen_by_a_part_of_their_name_or_the_whole() -> None:
    sft = workloads(Setting("0.5b", "cuda"))["sft"]
    assert [s.name for s in shorn(sft, "ours;=trl tuned").sides] == ["ours", "TRL tuned"]
    assert len(shorn(sft, "TRL tuned").sides) > 1


def test_every_side_computes_in_bfloat16_and_ours_in_large_micro_batches() -> None:
    for workload in workloads(Setting("1.5b", "cuda")).values():
        for side in workload.sides:
            ours = {"precision": "bf16", "weights": "bfloat16", "budget": BUDGET}
            assert side.options.items() >= (ours if side.role == "ours" else {"bf16": True}).items()
            assert side.options["device"] == "cuda"


REPORT = {"amount": {"tokens": 100}, "seconds": 2.0, "peak_gb": 1.0, "wall": 3.0, "losses": [1.0], "flops": 1e12}


def ended(monkeypatch: pytest.MonkeyPatch, outcome: dict[str, Any] | Failed) -> None:
    def finish(*_: Any) -> dict[str, Any]:
        if isinstance(outcome, Failed):
            raise outcome
        return outcome

    monkeypatch.setattr(processes, "finish", finish)


def test_a_failure_is_noted_and_takes_no_figure_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    document = {
        "machine": {
            "gpu": {"name": "a GPU", "memory_gb": 80.0, "cuda": "13.0"}, "driver": "1", "processor": "a processor",
            "cores": 16, "system": "Linux", "python": "3.12", "commit": "", "changed": False,
        },
        "limits": {"bf16_tflops": 1.0, "tf32_tflops": 0.5, "copy_gb_s": 10.0},
        "results": {},
    }  # fmt: skip
    ours, peer = gpu.turns(arguments(models=["0.5b"], only="sft", sides="ours;=TRL tuned"))
    ended(monkeypatch, REPORT)
    gpu.note(document, ours, None, 1.0)  # pyright: ignore[reportArgumentType]
    ended(monkeypatch, Failed("ended with 1\nout of something"))
    gpu.note(document, ours, None, 1.0)  # pyright: ignore[reportArgumentType]
    gpu.note(document, peer, None, 1.0)  # pyright: ignore[reportArgumentType]
    assert gpu.figure(document, ours) and not gpu.figure(document, peer)
    gpu.write(tmp_path / "x.json", document)
    told = (tmp_path / "x.md").read_text()
    assert "| SFT, 32 short rows a step | 50 tokens/s |" in told and "50.0%" in told
    assert "TRL tuned (bf16): ended with 1" in told and "out of something" not in told
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["x.json", "x.md"]


def test_decoding_reads_weights_once_a_step_and_a_shared_prompt_once() -> None:
    class Model(torch.nn.Linear):
        class config:
            num_hidden_layers, num_attention_heads, num_key_value_heads, hidden_size = 3, 4, 2, 8

    model = Model(5, 2, bias=False)
    token = 2 * 3 * 2 * 2 * 4  # keys and values, layers, heads, width, bytes
    assert traffic.per_token(model) == token
    # three steps with 10 tokens of the prompt; answers of 4 and 2 tokens behind it: 1 + 2 + 3 and 1
    assert traffic.read(model, [10], [[4, 2]]) == {"bytes": 3 * 40 + token * (30 + 6 + 1), "decoding_steps": 3.0}


def test_limits_are_measured_on_a_processor_too() -> None:
    found = gpu_limits.measure([{"hidden_size": 8, "intermediate_size": 16}], "cpu")
    assert found["bf16_tflops"] > 0 and found["tf32_tflops"] > 0 and found["copy_gb_s"] > 0
    assert list(found["gemm"]["bf16"]) == ["128x128x128", "64x8x16", "64x16x8"]


def test_long_rows_are_short_ones_end_to_end() -> None:
    short = [{"prompt_ids": [1, 2], "completion_ids": [3]}, {"prompt_ids": [4], "completion_ids": [5, 6]}]
    long = list(gpu_inputs.joined(short, 2, 8))
    assert long[0] == {"prompt_ids": [1, 2], "completion_ids": [3, 4, 5, 6, 1, 2]}
    assert all(len(row["prompt_ids"]) + len(row["completion_ids"]) == 8 for row in long)


def test_a_side_that_waits_does_nothing_before_it_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nprint('imported', flush=True)\n"
        "def main():\n    Path(sys.argv[2]).write_text('{\"amount\": 1}')\n"
    )
    side = Side("x", "tuned", "peers", str(script))  # an absolute path stays one behind the peers' directory
    here = Place((), 1, shared=True)
    told = processes.start(side, tmp_path, "told", here, waits=True)
    left = processes.start(side, tmp_path, "left", here, waits=True)
    assert left.process.stdin is not None
    left.process.stdin.close()
    assert left.process.wait(120) != 0
    assert not (left.out / "result.json").exists()
    assert processes.finish(told, 120.0)["amount"] == 1


def test_titles_and_units_do_not_depend_on_the_model() -> None:
    assert {n: (w.title, w.unit) for n, w in workloads(Setting("1.5b", "cuda")).items()} == {
        n: (w.title, w.unit) for n, w in gpu_report.WORKLOADS.items()
    }
