"""The output head: from a hidden state to logits, as the model itself would compute them.

Most heads are one matrix; some families scale its output (Cohere, Granite) or bound it (Gemma 2's tanh). Training
reaches the vocabulary at trained positions only and sampling at one position per row, so both need the head apart
from the model. `Head.of` checks itself against the model once and refuses a head that it cannot reproduce.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ladder.errors import UserError
from ladder.segments import PackedPlan, Segment


@dataclass(frozen=True, slots=True)
class Head:
    """logits = cap(scale * (h @ weight.T + bias)), cap(z) = softcap * tanh(z / softcap) when softcap > 0."""

    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    scale: float = 1.0
    softcap: float = 0.0

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """The head of a transformers causal language model. Raises UserError when it is of an unknown kind."""
        layer = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        config = model.config
        values = config.to_dict()  # pyright: ignore
        scale = float(values.get("logit_scale") or 1.0) / float(values.get("logits_scaling") or 1.0)
        softcap = float(values.get("final_logit_softcapping") or 0.0)
        head = cls(layer.weight, layer.bias, scale, softcap)
        head._check(model)
        return head

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V] in the model's dtype."""
        z = nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            z = z * self.scale
        if self.softcap:
            z = self.softcap * torch.tanh(z / self.softcap)
        return z

    def _check(self, model: nn.Module) -> None:
        """Compares with the model's own logits on four tokens."""
        device = self.weight.device
        asked = {
            "input_ids": torch.arange(4, device=device)[None],
            "position_ids": torch.arange(4, device=device)[None],
            "use_cache": False,
            "plan": PackedPlan.of([Segment(0, 4)], 4).to(device),
        }
        with torch.no_grad():
            mine = self.logits(model.get_decoder()(**asked)[0])  # pyright: ignore[reportCallIssue]
            theirs = model(**asked).logits
        if not torch.allclose(mine.float(), theirs.float(), atol=1e-4, rtol=1e-3):
            worst = (mine.float() - theirs.float()).abs().max().item()
            raise UserError(
                f"{type(model).__name__} computes its logits in a way that is not known here "
                f"(difference {worst:.2g} on a test input)",
                mend="use a model whose output head is a linear layer, scaled or soft-capped",
            )
