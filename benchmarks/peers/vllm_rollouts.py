"""vLLM on the processor, beside benchmarks/speed/rollouts.py; blocks of 32, so that answers to a prompt share them.

It starts in this process and binds its threads to the cores that this process may use. Log-probabilities are not asked
for (they would cost it a tenth), though our side's are part of every draw.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def start(work: Path, options: dict[str, Any]) -> Any:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    from vllm import LLM

    return LLM(
        model=str(work / options["model"]),
        dtype="bfloat16" if options["bf16"] else "float32",
        enforce_eager=not options["compiled"],
        max_model_len=1024,
        max_num_seqs=64,
        block_size=options["block"],
        generation_config="vllm",
        enable_prefix_caching=True,
        disable_log_stats=True,
        seed=0,
    )


def main(work: Path, result: Path, options: dict[str, Any]) -> None:
    begun = time.perf_counter()
    llm = start(work, options)
    ready = time.perf_counter() - begun
    import torch
    import transformers
    from vllm import SamplingParams, __version__

    eos = json.loads((work / options["model"] / "generation_config.json").read_text())["eos_token_id"]
    eos = eos if isinstance(eos, list) else [eos]
    lines = (work / options["rows"]).read_text().splitlines()[: options["prompts"]]
    prompts = [{"prompt_token_ids": json.loads(line)["ids"]} for line in lines]
    amounts, seconds = [], []
    for repetition in range(options["repetitions"]):
        params = SamplingParams(
            n=options["group"],
            temperature=1.0,
            max_tokens=options["tokens"],
            seed=repetition,
            stop_token_ids=eos,
            ignore_eos=True,
            detokenize=False,
        )
        llm.reset_prefix_cache()
        begun = time.perf_counter()
        done = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - begun)
        amounts.append(sum(len(o.token_ids) for one in done for o in one.outputs))
    made = {
        "amount": {"tokens": sum(amounts[1:])},
        "seconds": sum(seconds[1:]),
        "each": [a / s for a, s in zip(amounts, seconds, strict=True)],
        "start": ready,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "vllm": __version__},
    }
    result.write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
