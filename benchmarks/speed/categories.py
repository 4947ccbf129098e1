"""What an operator of a profile is for: its category, by its name or by what encloses it.

A name decides where it can: `mm` is a matrix product wherever it stands, `index_select` a gather. The rest (`mul`,
`add`, `softmax`) belongs to the nearest part of the program around it (`MARKS`), and else to what a layer does between
its products. An operator that is in none of the lists, and the interpreter's own time, are everything else.
"""

from __future__ import annotations

from typing import Any

PRODUCTS = "matrix products"
ATTENTION = "attention"
LAYERS = "norms, rotations, gates"
VOCABULARY = "vocabulary: log-probabilities, drawing"
OPTIMISER = "optimiser, clipping, adding gradients up"
COPIES = "copies, gathers, allocation"
DECODING = "decoding step (C)"
OTHER = "everything else"
CATEGORIES = (PRODUCTS, ATTENTION, LAYERS, VOCABULARY, OPTIMISER, COPIES, DECODING, OTHER)

WHOLE = "profile::whole"
MARKS = {"profile::attention": ATTENTION, "profile::draw": VOCABULARY, "profile::optimiser": OPTIMISER}
"""Parts of the program that are marked from outside (`profiled.py`)."""
FUNCTIONS = {"_TokenLogps": VOCABULARY, "AccumulateGrad": OPTIMISER}
"""Nodes of autograd that enclose operators, forward or backward."""
KERNELS = {
    "attend_": ATTENTION, "norm_": LAYERS, "rotate": LAYERS, "gate_": LAYERS, "logps_": VOCABULARY, "draw": VOCABULARY,
    "pack": COPIES, "multiply": PRODUCTS, "step": DECODING,
}  # fmt: skip
"""Functions of the compiled libraries, by what their names begin with."""
KERNEL = "kernel::"

_NAMES = {
    PRODUCTS: "mm addmm addmm_ addmv mv linear matmul _linear_pointwise mkldnn_linear _addmm_activation",
    ATTENTION: "bmm baddbmm baddbmm_ scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_attention_math",
    COPIES: "copy_ clone contiguous to _to_copy empty empty_like empty_strided zeros zeros_like zero_ new_zeros "
    "new_empty fill_ resize_ index index_select index_copy_ index_add_ index_put_ _index_put_impl_ gather scatter_ "
    "embedding embedding_backward embedding_dense_backward slice_backward select_backward index_select_backward "
    "constant_pad_nd repeat_interleave ones ones_like full masked_scatter_ _reorder_linear_weight",
}
BY_NAME = {name: category for category, names in _NAMES.items() for name in names.split()}
ELEMENTWISE = frozenset(
    (
        "mul", "mul_", "add", "add_", "sub", "sub_", "div", "div_", "neg", "neg_", "pow", "rsqrt", "mean", "sum",
        "silu", "silu_", "silu_backward", "sigmoid", "cat", "square", "addcmul", "addcmul_", "rms_norm",
        "_fused_rms_norm", "_fused_rms_norm_backward", "expand", "exp", "exp_",
    )
)  # fmt: skip


def category(event: Any) -> str:
    """Of an event of torch's profiler."""
    name = event.name
    if name.startswith(KERNEL):
        return next((c for prefix, c in KERNELS.items() if name[len(KERNEL) :].startswith(prefix)), OTHER)
    around = surroundings(event)
    if around == OPTIMISER:
        return OPTIMISER
    space, _, operator = name.partition("::")
    if space not in ("aten", "mkldnn"):
        return OTHER  # a mark or a function of autograd: what is left of it is the interpreter's
    operator = operator.partition(".")[0]
    return BY_NAME.get(operator) or around or (LAYERS if operator in ELEMENTWISE else OTHER)


def surroundings(event: Any) -> str | None:
    """The part of the program that it stands in."""
    while event is not None:
        if event.name in MARKS:
            return MARKS[event.name]
        found = next((c for part, c in FUNCTIONS.items() if part in event.name), None)
        if found is not None:
            return found
        event = event.cpu_parent
    return None
