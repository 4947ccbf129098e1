"""Gradients that a hand-written backward pass computes, by parameter, and how they reach the parameters.

The backward pass either returns its gradients to autograd, which sums them, or accumulates in place, into `.grad`.
Accumulating in place keeps one copy of a step's gradients for any number of micro-batches and saves the pass that adds
a second copy; it works with `backward()` and one thread at a time. `torch.autograd.grad` needs the gradients returned.
"""

from __future__ import annotations

from torch import Tensor

Gradients = dict[Tensor, Tensor | None]
"""Gradient by parameter, None until it is computed. Only trained parameters have an entry."""


def taken(grads: Gradients, in_place: bool) -> None:
    """Starts a backward pass: with in_place, the gradients start from the parameters' `.grad`."""
    if in_place:
        grads.update({p: p.grad for p in grads})


def given(grads: Gradients, in_place: bool) -> None:
    """Ends a backward pass that `taken` started: with in_place, the sums become the parameters' `.grad` and the entries
    become None, so that autograd gets no gradient to add."""
    if in_place:
        for p, grad in grads.items():
            assert grad is None or not grad.is_sparse, (
                "a tied embedding's sparse gradient must have been added to the head's dense one"
            )
            p.grad = grad
        grads.update(dict.fromkeys(grads))


def add(grads: Gradients, p: Tensor, grad: Tensor) -> None:
    """Adds a gradient, which may be sparse, to the parameter's sum."""
    accumulated = grads[p]
    grads[p] = grad if accumulated is None else accumulated.add_(grad)


def add_product(grads: Gradients, p: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b to the parameter's sum."""
    accumulated = grads[p]
    grads[p] = a @ b if accumulated is None else accumulated.addmm_(a, b)
