"""A sampler that draws from the policy of `lag` updates ago, as one does that runs beside the trainer.

After update v it holds the weights of version max(0, v - lag): at first the first policy goes on drawing, then every
update it moves on by one. With an importance ratio the answers still say what they should about the policy that is
trained, as long as it has not gone far (Espeholt et al. 2018, arXiv:1802.01561; Fu et al. 2025, arXiv:2505.24298).

Left out: rollouts of mixed age (a queue of answers that were begun under one policy and ended under another).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ladder.contract.rollouts import Completion, Request
from ladder.contract.training import Weights
from ladder.decoding.sampler import NativeSampler

FILE = "drawing.safetensors"


class LaggedSampler:
    """sampler: over modules of its own, which nobody trains and which hold the policy's first weights. What is trained
    of the last `lag` versions is kept in memory (`lag` copies of it), and saved with a checkpoint."""

    def __init__(self, sampler: NativeSampler, lag: int) -> None:
        if lag < 1:
            raise ValueError(f"a lag of {lag} updates is none")
        self.sampler, self.lag, self.version = sampler, lag, 0
        self.waiting: deque[tuple[int, dict[str, Tensor]]] = deque()
        self.own = dict(sampler.model.named_parameters())

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """See `types.Sampler`."""
        return self.sampler.generate(requests)

    def load(self, weights: Callable[[], Weights], version: int) -> None:
        """Keeps the new weights, and takes up those that are `lag` updates old by now."""
        self.waiting.append((version, {n: p.detach().clone() for n, p in weights() if p.requires_grad}))
        if len(self.waiting) > self.lag:
            self.version, old = self.waiting.popleft()
            self._take(old)

    def _take(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in weights.items():
                self.own[name].copy_(tensor)

    def save(self, directory: Path) -> None:
        """The weights that draw now, and those that will: "VERSION/NAME". What is not trained never changes."""
        assert self.waiting, "no checkpoint is older than the first update"
        held = [(self.version, {n: self.own[n] for n in self.waiting[0][1]}), *self.waiting]
        save_file({f"{v}/{n}": p.detach().contiguous() for v, ps in held for n, p in ps.items()}, directory / FILE)

    def restore(self, directory: Path) -> None:
        """The inverse of `save`, bit for bit."""
        versions: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_file(directory / FILE).items():
            version, _, name = key.partition("/")
            versions.setdefault(int(version), {})[name] = tensor.to(self.own[name].device)
        (self.version, now), *later = sorted(versions.items())
        self._take(now)
        self.waiting = deque(later)
