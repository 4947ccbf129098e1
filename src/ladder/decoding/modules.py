"""The decoding path of any model: the modules that train, called with a key-value cache.

A slot of `module_cache.Cache` holds a row's prompt and completion; a prompt is read once and copied to the rows that
continue it. It is slower than `llama.py`, which knows one layout of layers, and is the oracle of its tests.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ladder.decoding.key_values import KeyValues, Layout
from ladder.decoding.module_cache import Cache, PromptPlan, TokenPlan
from ladder.decoding.prefill import Prompts
from ladder.models.head import Head


class Modules:
    """A `backend.Decoding` through a model's own modules. slots, length: of the cache."""

    ordered = False

    def __init__(self, base: nn.Module, head: Head, slots: int, length: int) -> None:
        self.base, self.head, self.slots, self.length = base, head, slots, length
        self.cache = Cache(slots, length)
        self.device = head.weight.device

    def read(self, prompts: Prompts, first: int) -> Tensor:
        reader = PromptPlan(prompts.plan.to(self.device))
        tokens, positions = prompts.tokens.to(self.device), prompts.positions.to(self.device)
        hidden = self.base(input_ids=tokens[None], position_ids=positions[None], use_cache=False, plan=reader)[0][0]
        self.fill(reader.kept, prompts, first)
        return self.head.logits(hidden.index_select(0, prompts.last.to(self.device)))

    def fill(self, cache: KeyValues, layout: Layout, first: int) -> None:
        self.cache.fill(cache, torch.from_numpy(layout.line[layout.owner]).to(self.device), first)

    def extract(self, slot: int, length: int) -> KeyValues:
        return self.cache.extract(slot, length)

    def step(self, tokens_A: np.ndarray, positions_A: np.ndarray) -> Tensor:
        positions = torch.from_numpy(positions_A).to(self.device)
        plan = TokenPlan(self.cache, positions, int(positions_A.max()) + 1)
        tokens = torch.from_numpy(tokens_A).to(self.device)
        hidden = self.base(
            input_ids=tokens[:, None], position_ids=positions[:, None], use_cache=False, plan=plan
        )[0]
        return self.head.logits(hidden[:, 0])

    def keep(self, kept: np.ndarray, positions_A: np.ndarray) -> None:
        to = np.flatnonzero(kept != np.arange(len(kept)))
        if len(to):
            length = int(positions_A.max()) + 1
            self.cache.move(torch.from_numpy(to), torch.from_numpy(kept[to]), length)
