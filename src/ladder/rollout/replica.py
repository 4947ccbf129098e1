"""A replica: a sampler with its own copy of the policy's weights.

The replica replaces its weights between steps only, when no sequence is in flight, so one version of the weights
samples all of a completion. A request is sampled with the weights that were due when it was submitted: a request that
arrives while new weights wait for running sequences waits for them, too.

Weights are due when they are `lag` updates old. After update v the replica samples from version max(0, v - lag): from
the first policy for the first `lag` updates, then one version further with every update. An importance ratio corrects
for the difference from the trained policy as long as it is small (Espeholt et al. 2018, arXiv:1802.01561; Fu et al.
2025, arXiv:2505.24298).

Left out: new weights in the middle of a sequence, with a version for each range of its tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import RLock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ladder.contract.rollouts import Completion, Finished, Progress, Request, Sampling
from ladder.contract.training import Weights
from ladder.decoding.generate import generate
from ladder.decoding.sampler import NativeSampler

FILE = "drawing.safetensors"


class Replica:
    """A `contract.rollouts.Sampler`. sampler: of a separate, untrained copy of the policy with its first weights. The
    trained parameters of the last `lag` versions are kept in memory and saved with a checkpoint.

    `load` may be called from another thread than the other methods.
    """

    def __init__(self, sampler: NativeSampler, lag: int = 0) -> None:
        if lag < 0:
            raise ValueError(f"a lag of {lag} updates would be of weights to come")
        self.sampler, self.lag = sampler, lag
        self.waiting: deque[tuple[int, dict[str, Tensor]]] = deque()  # versions that are not in use yet
        self.parameters = dict(sampler.model.named_parameters())
        self.trained: list[str] = []  # names of the parameters that `load` replaces
        self.lock = RLock()
        self.progress: Progress | None = None

    @property
    def version(self) -> int:
        """The version of the weights that are sampled from now."""
        return self.sampler.version

    @property
    def busy(self) -> bool:
        return self.sampler.busy

    def submit(self, request: Request) -> int:
        """See `contract.rollouts.Sampler`."""
        with self.lock:
            return self.sampler.submit(request)

    def continue_from(
        self, number: int, sample: int, tokens: Sequence[int], *, sampling: Sampling | None = None, keep: bool = True
    ) -> int:
        """See `contract.rollouts.Sampler`."""
        with self.lock:
            return self.sampler.continue_from(number, sample, tokens, sampling=sampling, keep=keep)

    def step(self) -> list[Finished]:
        """See `contract.rollouts.Sampler`."""
        self.sampler.progress = self.progress
        with self.lock:
            return self.sampler.step()

    def cancel(self, number: int) -> None:
        """See `contract.rollouts.Sampler`."""
        with self.lock:
            self.sampler.cancel(number)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """See `contract.rollouts.Sampler`."""
        if self.sampler.workers == 1:
            return generate(self, requests)
        self.sampler.progress = self.progress
        return self.sampler.generate(requests)

    # ------------------------------------------------------------ weights

    def load(self, weights: Callable[[], Weights], version: int) -> None:
        """Copies the new weights, and uses the weights that are due as soon as no sequence is in flight. A version that
        the replica has already (after `restore`) is ignored."""
        with self.lock:
            newest = self.waiting[-1][0] if self.waiting else self.version
            if version <= newest and self.trained:
                return
            copy = {name: p.detach().clone() for name, p in weights() if p.requires_grad}
            self.trained = list(copy)
            self.waiting.append((version, copy))
            if len(self.waiting) > self.lag:
                self.sampler.when_idle(self._take_due)

    def _take_due(self) -> None:
        while len(self.waiting) > self.lag:
            self._take(*self.waiting.popleft())

    def _take(self, version: int, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in weights.items():
                self.parameters[name].copy_(tensor)
        self.sampler.reweighted(version)

    def save(self, directory: Path) -> None:
        """Writes the present and the waiting versions of the trained parameters, as "VERSION/NAME"."""
        assert self.trained, "no checkpoint is older than the first update"
        held = [(self.version, {name: self.parameters[name] for name in self.trained}), *self.waiting]
        save_file({f"{v}/{n}": p.detach().contiguous() for v, ps in held for n, p in ps.items()}, directory / FILE)

    def restore(self, directory: Path) -> None:
        """Reads what `save` wrote, bit for bit."""
        versions: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_file(directory / FILE).items():
            version, _, name = key.partition("/")
            versions.setdefault(int(version), {})[name] = tensor.to(self.parameters[name].device)
        now, *later = sorted(versions.items())
        self._take(*now)
        self.trained, self.waiting = list(now[1]), deque(later)
