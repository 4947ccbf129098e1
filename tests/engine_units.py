"""Units and losses that tests of the engine train on: groups, pairs, and one loss of every kind of unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ladder.contract.batch import Batch, Out
from ladder.contract.training import Loss, Pair, Sample, Unit
from ladder.engine.engine import Engine
from ladder.losses import CISPO, GSPO, CrossEntropy, PolicyClip, PolicyGradient

COLUMNS = ("advantages", "old_logps", "ref_logps", "sampler_logps")


@dataclass(frozen=True)
class PairLoss:
    """log(1 + exp(-(log p(chosen) - log p(rejected)) / 10)): any loss with one number per pair."""

    unit: Literal["pair"] = "pair"
    needs: tuple[str, ...] = ("ref_logps",)
    entropy: bool = False

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = batch.pairs(batch.sum(out.logps - batch.cols["ref_logps"]))
        return torch.nn.functional.softplus((rejected - chosen) / 10), {"margin": (chosen - rejected).detach()}


LOSSES: dict[str, Loss] = {
    "token": CrossEntropy(),
    "sequence": CrossEntropy(unit="sequence"),
    "everything": PolicyClip(kl_coef=0.3, entropy_coef=0.05, importance_cap=2.0),
    "clip per sequence": PolicyClip(unit="sequence"),
    "clip padded": PolicyClip(unit="padded", length=20),
    "padded by one": PolicyGradient(unit="padded", length=1, entropy=False),
    "whole answer": GSPO(clip_low=0.2, clip_high=0.2),
    "weights": CISPO(),
    "pair": PairLoss(),
}


def group(seed: int, answers: int, prompt: int = 6) -> list[Sample]:
    """Answers to one prompt, with holes in their masks; columns are as a policy a little off would fill them."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randint(5, 90, (prompt,), generator=g)
    samples = []
    for _ in range(answers):
        n = int(torch.randint(1, 16, (1,), generator=g))
        mask = torch.cat([torch.zeros(prompt), torch.ones(1), (torch.rand(n, generator=g) > 0.2).float()]).bool()
        tokens = torch.cat([shared, torch.randint(5, 90, (n + 1,), generator=g)])
        cols = {name: torch.randn(len(tokens), generator=g) * 0.5 - 4 for name in COLUMNS}
        cols["advantages"] = torch.randn((), generator=g).expand(len(tokens)).contiguous()
        samples.append(Sample(tokens, mask, cols))
    return samples


def units_of(loss: Loss, groups: int = 4) -> list[Unit]:
    samples = [s for i in range(groups) for s in group(i, 4, prompt=3 + 2 * i)]
    if loss.unit == "pair":
        return [Pair(a, b) for a, b in zip(samples[::2], samples[1::2], strict=True)]
    return list(samples)


def weights(e: Engine) -> dict[str, Tensor]:
    return {n: w.detach().clone() for n, w in e.weights()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
