"""vLLM as a sampler: its engine runs in this process, gets new weights in memory, and has to prove that it did.

What proves it, at every `load`: each tensor is sent with its checksum and counted on arrival; tensors that vLLM keeps
as they are, are read back and compared; those that it packs for the processor cannot be read, so a canary, a few
tokens drawn at once, must have the log-probabilities that the trained model gives them. The trap that this is for: on
a CPU `reload_weights` leaves the packed matrix of a tied output head as it was, with only a line in the log. The head
is packed again here.

Draws are keyed by (request, sample) through vLLM's own seeds; log-probabilities are of the distribution that was drawn
from. vLLM computes them with other kernels than the engine, so they differ by rounding (docs/speed.md has figures):
a loss corrects for it with `importance_cap`.

Left out: thinking budgets, adapters, several processes or processors, and stopping in the middle of a call.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ladder.base.errors import UserError, missing_extra
from ladder.contract.rollouts import Completion, Request, Sampling, Stop
from ladder.contract.training import Weights
from ladder.decoding.draw import stream

Progress = Callable[[int, int], None]
CANARY_TOKENS = 12
SEED_BITS = 63

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over in memory
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}
"""Of the environment, unless it says otherwise."""


class VLLMSampler:
    """See the file's docstring (`types.Sampler`). Starts at the first call, with the model as it is then.

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
        }
        self.cache_gb = cache_gb
        self.version = 0
        self.canary = 0.0  # the canary's worst difference at the last start or load
        self.progress: Progress | None = None
        self.llm: Any = None
        self.shapes: dict[str, list[int]] = {}

    # ------------------------------------------------------------ the contract

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """See `types.Sampler`. Raises UserError for what vLLM cannot be asked here."""
        for r in requests:
            self._check(r)
        if not requests:
            return []
        if self.llm is None:
            self._start()
        asked = [(r, j) for r in requests for j in range(r.n)]
        done = iter(self._ask([(r.prompt, self._params(r, stream(r.key, j) >> (64 - SEED_BITS))) for r, j in asked]))
        groups = [[self._completion(next(done), r.sampling) for _ in range(r.n)] for r in requests]
        if self.progress is not None:
            self.progress(len(asked), len(asked))
        return groups

    def load(self, weights: Callable[[], Weights], version: int) -> None:
        """Hands over the weights. Raises UserError unless they all arrived and are what vLLM now draws with."""
        self.version = version
        if self.llm is None:  # it will start with them
            return
        sent = [(name, tensor.detach(), checksum(tensor)) for name, tensor in weights()]
        check_names({name: list(tensor.shape) for name, tensor, _ in sent}, self.shapes)
        (arrived,) = self.llm.collective_rpc(receive, args=(sent,))
        check_arrived({name: crc for name, _, crc in sent}, arrived)
        self.llm.reset_prefix_cache()  # keys of the old weights
        self._sing()

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
        self._sing()

    def _params(self, r: Request, seed: int) -> Any:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        s = r.sampling
        return SamplingParams(
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

    def _ask(self, asked: Sequence[tuple[Sequence[int], Any]]) -> list[Any]:
        prompts = [{"prompt_token_ids": list(prompt)} for prompt, _ in asked]
        done = self.llm.generate(prompts, [params for _, params in asked], use_tqdm=False)
        return [one.outputs[0] for one in done]

    def _completion(self, out: Any, sampling: Sampling) -> Completion:
        tokens = [int(t) for t in out.token_ids]
        logps = [float(at[t].logprob) for at, t in zip(out.logprobs, tokens, strict=True)]
        stop = how_it_ended(tokens, self.eos, out.stop_reason)
        text: str = self.tokenizer.decode(tokens[:-1] if stop == "eos" else tokens)
        if stop == "stop":
            text = text[: min(text.find(s) for s in sampling.stop if s in text)]
        return Completion(tokens, logps, [False] * len(tokens), stop, text)

    def _sing(self) -> None:
        """Draws a few tokens and compares their log-probabilities with the trained model's. Raises UserError."""
        prompt = [t for t in range(CANARY_TOKENS) if t not in self.eos][: max(1, self.context // 4)]
        request = Request(prompt, 1, Sampling(min(CANARY_TOKENS, self.context // 2)))
        (out,) = self._ask([(prompt, self._params(request, self.version))])
        drawn = self._completion(out, request.sampling)
        own = self.score([*prompt, *drawn.tokens])[len(prompt) :]
        self.canary = float((own - torch.tensor(drawn.logps)).abs().max())
        if not self.canary <= self.tolerance:
            raise UserError(
                f"vLLM's log-probabilities are {self.canary:.2g} nats off those of the model that is trained: it draws "
                "with other weights",
                field="sampler.kind",
                hint="use sampler: {kind: native}, or raise sampler.tolerance if the types differ",
            )


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
    """Runs beside vLLM's model: loads what was sent, and returns the checksums of what is there now."""
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
            arrived[name] = checksum(held)  # what it packs is empty now, and left to the canary
    return arrived


def _pack_tied_head(model: Any, sent: Mapping[str, Tensor]) -> None:
    """Packs the output head again where it is the embedding: `reload_weights` leaves it as it was."""
    if "lm_head.weight" in sent or next(model.parameters()).device.type != "cpu":
        return
    from vllm.model_executor.layers.utils import (  # pyright: ignore[reportMissingImports]
        dispatch_cpu_unquantized_gemm,
    )

    table = model.model.embed_tokens
    dispatch_cpu_unquantized_gemm(table, remove_weight=False)
    if model.lm_head is not table:
        dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)
