"""The output head: from a hidden state to logits, as the model itself computes them, or to one number.

Most heads are one matrix; some families scale its output (Cohere, Granite) or bound it (Gemma 2's tanh). Training
computes logits at trained positions only and sampling at one position per row, so both need the head separated from the
model. `Head.of` compares its logits with the model's once and raises UserError for a head that it cannot reproduce.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ladder.attention.packed import PackedPlan
from ladder.base.errors import UserError
from ladder.packing.prefix_tree import Segment


@dataclass(frozen=True, slots=True)
class Head:
    """logits = cap(scale * (h @ weight.T + bias)), cap(z) = softcap * tanh(z / softcap) when softcap > 0."""

    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    scale: float = 1.0
    softcap: float = 0.0

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """The head of a transformers causal language model. Raises UserError for a head of another form."""
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
        """Compares with the model's own logits on four tokens. Raises UserError when they differ."""
        tokens = torch.arange(4, device=self.weight.device)
        with torch.no_grad():
            head_logits = self.logits(hidden(model, tokens))
            model_logits = model(**_inputs(tokens)).logits[0]
        if not torch.allclose(head_logits.float(), model_logits.float(), atol=1e-4, rtol=1e-3):
            worst = (head_logits.float() - model_logits.float()).abs().max().item()
            raise UserError(
                f"the output head of {type(model).__name__} is not supported: its logits differ from those of a scaled "
                f"or soft-capped linear layer (by {worst:.2g} on a test input)",
                hint="use a model whose output head is a linear layer, scaled or soft-capped",
            )


def hidden(model: nn.Module, tokens: Tensor) -> Tensor:
    """The last hidden states [T, D] of one sequence of tokens [T]."""
    return model.get_decoder()(**_inputs(tokens))[0][0]  # pyright: ignore[reportCallIssue]


def _inputs(tokens: Tensor) -> dict[str, Any]:
    """Keyword arguments of the model's forward pass over one sequence."""
    n = len(tokens)
    plan = PackedPlan.of([Segment(0, n)], n).to(tokens.device)
    positions = torch.arange(n, device=tokens.device)[None]
    return {"input_ids": tokens[None], "position_ids": positions, "use_cache": False, "plan": plan}


@dataclass(frozen=True, slots=True)
class ScalarHead:
    """One number per position: h @ weight.T (+ bias), as in transformers' sequence classifiers with one label."""

    weight: Tensor  # [1, D]
    bias: Tensor | None  # [1]

    def values(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [...], float32."""
        return nn.functional.linear(hidden, self.weight, self.bias)[..., 0].float()


def head_of(model: nn.Module) -> Head | ScalarHead:
    """The head of a causal language model or of a one-label classifier. Raises UserError for any other model."""
    if model.get_output_embeddings() is not None:  # pyright: ignore[reportCallIssue]
        return Head.of(model)
    layer = getattr(model, "score", None)
    copies = getattr(layer, "modules_to_save", None)
    layer = layer if copies is None else copies["default"]  # with an adapter, PEFT trains a copy of the head
    if not isinstance(layer, nn.Linear) or layer.out_features != 1:
        raise UserError(
            f"{type(model).__name__} has neither a language-model head nor a score head that gives one number",
            field="model",
            hint="give a causal language model, or a sequence classifier with one label",
        )
    return ScalarHead(layer.weight, layer.bias)
