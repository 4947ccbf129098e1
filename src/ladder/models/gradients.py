"""Gradients taken by hand, by parameter, and how they reach the parameters.

A backward pass returns its gradients to autograd, which sums them, or sums them where they belong, into `.grad`. The
latter holds one copy of a step's gradients however many micro-batches it has, and spares the pass that adds a second;
it is for `backward()`, one thread at a time. `torch.autograd.grad` needs the former.
"""

from __future__ import annotations

from torch import Tensor

Gradients = dict[Tensor, Tensor | None]
"""By parameter; None until there is one. Only what is trained has a place."""


def taken(grads: Gradients, in_place: bool) -> None:
    """Begins with what stands in the parameters, if their sums are to be taken in place."""
    if in_place:
        grads.update({p: p.grad for p in grads})


def given(grads: Gradients, in_place: bool) -> None:
    """Ends what `taken` began: the sums stand in the parameters, and nothing is left to hand to autograd."""
    if in_place:
        for p, grad in grads.items():
            assert grad is None or not grad.is_sparse, "the few rows of a tied table are added to the head's gradient"
            p.grad = grad
        grads.update(dict.fromkeys(grads))


def add(grads: Gradients, p: Tensor, grad: Tensor) -> None:
    """Adds a gradient, which may be sparse, to what is there."""
    there = grads[p]
    grads[p] = grad if there is None else there.add_(grad)


def add_product(grads: Gradients, p: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b."""
    there = grads[p]
    grads[p] = a @ b if there is None else there.addmm_(a, b)
