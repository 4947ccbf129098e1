"""vLLM as a sampler: its engine runs in this process and receives new weights in memory, which every `load` verifies.

Each tensor is sent with its checksum, which is compared on arrival. Parameters that vLLM stores unchanged are read back
and compared. Those that it packs for the CPU cannot be read, so a canary of a few tokens is sampled after the load, and
its log-probabilities are compared with the trained model's. This finds a known fault: on a CPU, `reload_weights` does
not update the packed matrix of a tied output head and only logs a line. `_pack_tied_head` packs it again.

Sampling is keyed by (request, sample) through vLLM's seeds; log-probabilities are those of the sampled distribution.
vLLM computes them with other kernels than the engine, so they differ by rounding (docs/speed.md has figures), for which
a loss corrects with `importance_cap`.

Requests join vLLM's continuous batch. Its prefix cache holds the keys and values of kept samples while it has room;
else vLLM computes them anew.

Left out: thinking budgets, adapters, several processes or processors.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ladder.base.errors import UserError, missing_extra
from ladder.contract.rollouts import Completion, Finished, Progress, Request, Sampling, Stop
from ladder.contract.training import Weights
from ladder.decoding.draw import stream
from ladder.decoding.generate import generate
from ladder.decoding.kept import KeptSample, KeptSamples

CANARY_TOKENS = 12
SEED_BITS = 63

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over in memory
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}
"""Environment variables that vLLM is started with, unless they are set already."""


@dataclass(slots=True, eq=False)
class _Job:
    """A request in flight. before: the kept sample that it continues. completions: of the ended samples, by index."""

    request: Request
    before: KeptSample | None
    completions: dict[int, Completion] = field(default_factory=dict)

    def seed(self, place: int) -> int:
        """vLLM's seed of one sample."""
        if self.before is None:
            bits = stream(self.request.key, place)
        else:
            bits = stream(self.request.key, self.before.sample, self.before.drawn)
        return bits >> (64 - SEED_BITS)


class VLLMSampler:
    """See the file's docstring (`contract.rollouts.Sampler`). Starts at the first request, with the model of that time.

    save: writes the model as a plain directory. score: the trained model's log-probabilities of a sequence's tokens,
    float [T] (0 at the first). eos: token ids that end an answer. context: most tokens of prompt and answer.
    slots: most sequences side by side. cache_gb: room for keys and values. block: tokens of a block of the cache (a
    prompt is shared in whole blocks). tolerance: how far a canary's log-probability may be off, in nats.
    """

    def __init__(
        self,
        save: Callable[[Path], None],
        tokenizer: Any,
        *,
        eos: Sequence[int],
        score: Callable[[list[int]], Tensor],
        context: int,
        slots: int = 64,
        cache_gb: int = 4,
        block: int = 32,
        compiled: bool = False,
        dtype: str = "float32",
        tolerance: float = 1e-3,
    ) -> None:
        self.save, self.tokenizer, self.score = save, tokenizer, score
        self.eos, self.context, self.tolerance = tuple(sorted(set(eos))), context, tolerance
        self.options = {
            "dtype": dtype,
            "enforce_eager": not compiled,
            "max_model_len": context,
            "max_num_seqs": slots,
            "block_size": block,
            "scheduling_policy": "priority",
        }
        self.cache_gb = cache_gb
        self.version = 0
        self.canary = 0.0  # the canary's worst difference at the last start or load
        self.progress: Progress | None = None
        self.llm: Any = None
        self.jobs: dict[int, _Job] = {}
        self.kept = KeptSamples()
        self.numbers = count()
        self.done, self.total = 0, 0  # samples since nothing was in flight
        self.shapes: dict[str, list[int]] = {}

    # ------------------------------------------------------------ the contract

    @property
    def busy(self) -> bool:
        return bool(self.jobs)

    def submit(self, request: Request) -> int:
        """See `contract.rollouts.Sampler`. Raises UserError for requests that this sampler does not support."""
        return self._add(_Job(request, None))

    def continue_from(
        self, number: int, sample: int, tokens: Sequence[int], *, sampling: Sampling | None = None, keep: bool = True
    ) -> int:
        """See `contract.rollouts.Sampler`."""
        kept = self.kept.find(number, sample, tokens)
        prompt, sampling = [*kept.sequence, *tokens], sampling or kept.sampling
        added = self._add(_Job(Request(prompt, 1, sampling, kept.key, kept.priority, keep), kept))
        self.kept.remove(number, sample)
        return added

    def _add(self, job: _Job) -> int:
        request, number = job.request, next(self.numbers)
        self._check(request)
        self._start()
        self.jobs[number] = job
        self.total += request.n
        for place in range(request.n):
            prompt, params = {"prompt_token_ids": list(request.prompt)}, self._params(request, job.seed(place))
            self.llm.llm_engine.add_request(name(number, place), prompt, params, priority=-request.priority)
        return number

    def step(self) -> list[Finished]:
        """See `contract.rollouts.Sampler`."""
        if not self.jobs:
            return []
        finished: list[Finished] = []
        for out in self.llm.llm_engine.step():
            number, place = map(int, out.request_id.split("."))
            if out.finished and number in self.jobs:
                finished += self._end(number, place, out.outputs[0])
        if self.progress is not None:
            self.progress(self.done, self.total)
        self._rest()
        return finished

    def _end(self, number: int, place: int, out: Any) -> list[Finished]:
        """Stores a sample's completion; returns the request if all its samples have ended."""
        job = self.jobs[number]
        job.completions[place] = completion = self._completion(out, job.request.sampling)
        self.done += 1
        if job.request.keep:
            written = job.request.prompt[len(job.before.sequence) :] if job.before else []
            first = KeptSample.of(job.request, place, completion)
            kept = job.before.after(completion, written, job.request.sampling) if job.before else first
            self.kept.put(number, place, kept)
        if len(job.completions) < job.request.n:
            return []
        del self.jobs[number]
        return [Finished(number, [job.completions[i] for i in range(job.request.n)])]

    def cancel(self, number: int) -> None:
        """See `contract.rollouts.Sampler`."""
        self.kept.drop(number)
        job = self.jobs.pop(number, None)
        if job is not None:
            running = [i for i in range(job.request.n) if i not in job.completions]
            self.llm.llm_engine.abort_request([name(number, i) for i in running])
            self.total -= len(running)
            self._rest()

    def _rest(self) -> None:
        """Resets the progress counts when no request is in flight."""
        if not self.jobs:
            self.done, self.total = 0, 0

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """See `contract.rollouts.Sampler`. Raises UserError for requests that this sampler does not support."""
        return generate(self, requests)

    def load(self, weights: Callable[[], Weights], version: int) -> None:
        """Sends the weights to vLLM and verifies that it samples from them. Raises UserError if it does not, or if
        requests are in flight."""
        if self.busy:
            raise UserError(
                "new weights were loaded while requests are in flight, which would draw from two models",
                hint="step until they have finished, or cancel them",
            )
        self.version = version
        if self.llm is None:  # vLLM will start with the new weights
            return
        sent = [(name, tensor.detach(), checksum(tensor)) for name, tensor in weights()]
        check_names({name: list(tensor.shape) for name, tensor, _ in sent}, self.shapes)
        (arrived,) = self.llm.collective_rpc(receive, args=(sent,))
        check_arrived({name: crc for name, _, crc in sent}, arrived)
        self.llm.reset_prefix_cache()  # keys of the old weights
        self._check_canary()

    def _check(self, r: Request) -> None:
        if not r.prompt or r.n < 1 or r.sampling.max_tokens < 1:
            raise UserError(f"asked for {r.n} samples of {r.sampling.max_tokens} tokens to {len(r.prompt)} of prompt")
        if r.sampling.think_budget:
            raise UserError(
                "vLLM is not asked to close thinking blocks", field="sampling.think_budget", hint="use sampler: native"
            )
        if "" in r.sampling.stop:
            raise UserError("a stop string is empty", field="stop", hint="drop it")
        if len(r.prompt) >= self.context:
            raise UserError(
                f"a prompt of {len(r.prompt)} tokens leaves no room in a context of {self.context}",
                hint="shorten it, or drop over-long prompts when loading the data",
            )

    # ------------------------------------------------------------ vLLM

    def _start(self) -> None:
        """Starts vLLM unless it runs already."""
        if self.llm is not None:
            return
        for name, value in {**SETTINGS, "VLLM_CPU_KVCACHE_SPACE": str(self.cache_gb)}.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM  # pyright: ignore[reportMissingImports]
        except ImportError as err:
            raise missing_extra("vllm", "vllm", "sampler.kind: vllm") from err
        threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as directory:
            self.save(Path(directory))
            self.shapes = saved_shapes(Path(directory))
            self.llm = LLM(
                model=directory,
                generation_config="vllm",
                logprobs_mode="processed_logprobs",
                enable_prefix_caching=True,
                disable_log_stats=True,
                **self.options,
            )
        torch.set_num_threads(threads)  # vLLM sets its own
        self._check_canary()

    def _params(self, r: Request, seed: int) -> Any:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        s = r.sampling
        return SamplingParams(
            output_kind=RequestOutputKind.FINAL_ONLY,
            seed=seed,
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
            max_tokens=min(s.max_tokens, self.context - len(r.prompt)),
            logprobs=0,
            stop=list(s.stop),
            stop_token_ids=list(self.eos),
            ignore_eos=True,  # whatever the configuration calls so: `eos` decides
            detokenize=bool(s.stop),
            skip_special_tokens=False,
        )

    def _completion(self, out: Any, sampling: Sampling) -> Completion:
        tokens = [int(t) for t in out.token_ids]
        logps = [float(at[t].logprob) for at, t in zip(out.logprobs, tokens, strict=True)]
        stop = how_it_ended(tokens, self.eos, out.stop_reason)
        text: str = self.tokenizer.decode(tokens[:-1] if stop == "eos" else tokens)
        if stop == "stop":
            text = text[: min(text.find(s) for s in sampling.stop if s in text)]
        return Completion(tokens, logps, [False] * len(tokens), stop, text, self.version)

    def _check_canary(self) -> None:
        """Samples a few tokens and compares their log-probabilities with the trained model's. Raises UserError."""
        prompt = [t for t in range(CANARY_TOKENS) if t not in self.eos][: max(1, self.context // 4)]
        request = Request(prompt, 1, Sampling(min(CANARY_TOKENS, self.context // 2)))
        params = self._params(request, self.version)
        (done,) = self.llm.generate([{"prompt_token_ids": prompt}], [params], use_tqdm=False)
        drawn = self._completion(done.outputs[0], request.sampling)
        own = self.score([*prompt, *drawn.tokens])[len(prompt) :]
        self.canary = float((own - torch.tensor(drawn.logps)).abs().max())
        if not self.canary <= self.tolerance:
            raise UserError(
                f"vLLM's log-probabilities are {self.canary:.2g} nats off those of the model that is trained: it draws "
                "with other weights",
                field="sampler.kind",
                hint="use sampler: {kind: native}, or raise sampler.tolerance if the types differ",
            )


def name(number: int, place: int) -> str:
    """vLLM's request id of a sample."""
    return f"{number}.{place}"


def how_it_ended(tokens: Sequence[int], eos: Sequence[int], reason: object) -> Stop:
    if isinstance(reason, str):
        return "stop"
    return "eos" if tokens[-1] in eos else "length"


# ---------------------------------------------------------------- the handshake


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)


def saved_shapes(directory: Path) -> dict[str, list[int]]:
    """The shape of every tensor in a model directory."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            shapes |= {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def check_names(sent: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> None:
    """Raises UserError unless exactly the model's tensors are sent."""
    wrong = sorted({n for n in {**sent, **expected} if sent.get(n) != expected.get(n)})
    if wrong:
        raise UserError(
            f"{len(wrong)} tensors sent to vLLM are not those that it started with ({wrong[0]}: sent "
            f"{sent.get(wrong[0])}, expected {expected.get(wrong[0])})",
            field="sampler.kind",
            hint="vLLM takes whole models only: train without an adapter, or use sampler: {kind: native}",
        )


def check_arrived(sent: Mapping[str, int], arrived: Mapping[str, int]) -> None:
    """Raises UserError when a tensor did not arrive, or arrived as another."""
    lost = sorted(n for n in sent if n not in arrived)
    changed = sorted(n for n in sent if n in arrived and arrived[n] != sent[n])
    if lost or changed:
        raise UserError(
            f"vLLM did not take {len(lost)} of {len(sent)} tensors and holds {len(changed)} others than were sent "
            f"({(lost + changed)[0]})",
            field="sampler.kind",
            hint="this version of vLLM loads weights in another way: use sampler: {kind: native}",
        )


def receive(worker: Any, sent: Sequence[tuple[str, Tensor, int]]) -> dict[str, int]:
    """Runs in vLLM's worker: loads the sent tensors and returns the checksums of the model's present ones."""
    arrived: dict[str, int] = {}

    def taken() -> Any:
        for name, tensor, _ in sent:
            arrived[name] = checksum(tensor)
            yield name, tensor

    worker.reload_weights(weights_iterator=taken())
    model = worker.get_model()
    _pack_tied_head(model, {name: tensor for name, tensor, _ in sent})
    for name, held in model.named_parameters():
        if name in arrived and held.shape == next(t.shape for n, t, _ in sent if n == name):
            arrived[name] = checksum(held)  # packed parameters are empty here; the canary checks them
    return arrived


def _pack_tied_head(model: Any, sent: Mapping[str, Tensor]) -> None:
    """Packs a tied output head again, which `reload_weights` does not update."""
    if "lm_head.weight" in sent or next(model.parameters()).device.type != "cpu":
        return
    from vllm.model_executor.layers.utils import (  # pyright: ignore[reportMissingImports]
        dispatch_cpu_unquantized_gemm,
    )

    table = model.model.embed_tokens
    dispatch_cpu_unquantized_gemm(table, remove_weight=False)
    if model.lm_head is not table:
        dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)
