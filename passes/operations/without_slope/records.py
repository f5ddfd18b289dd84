"""Functions, methods and attributes whose results have no slope in the numbers that they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from passes.operations.contract import Build, Rule
from passes.operations.names import name_of_call
from passes.operations.operation import Kind, Operation, of_kind

CALLS: tuple[Operation, ...] = (
    *of_kind(
        Kind.SHAPE,
        *("size", "dim", "ndimension", "numel", "nelement", "stride", "element_size", "get_device"),
        *("is_floating_point", "is_complex", "is_contiguous", "is_tensor", "is_pinned", "is_inference"),
        *("is_same_size", "data_ptr", "storage_offset", "untyped_storage", "register_hook", "sym_size"),
        *("shape", "dtype", "device", "ndim", "is_cuda", "layout", "itemsize", "is_leaf", "nbytes"),
        *("is_nested", "is_sparse", "is_mkldnn", "is_quantized", "is_meta", "is_mps", "is_cpu", "is_xpu"),
        *("_version", "output_nr", "requires_grad", "hash", "repr", "format"),
        # Python's.
        *("len", "isinstance"),
        blind=True,
    ),
    # Said of a tensor, too, but a field of somebody's result may be called so.
    *of_kind(Kind.SHAPE, "grad_fn", "_base", "grad"),
    *of_kind(
        Kind.BLANK,
        *("zeros", "ones", "empty", "eye", "zeros_like", "ones_like", "empty_like", "new_zeros", "new_ones"),
        *("new_empty", "new_empty_strided", "tril_indices", "triu_indices"),
        blind=True,
        fresh=True,
    ),
    # Made of numbers that may be read off a tensor.
    *of_kind(
        Kind.BLANK,
        *("full", "arange", "linspace", "logspace", "tensor", "scalar_tensor"),
        fresh=True,
    ),
    *of_kind(
        Kind.BLANK,
        *("full_like(input, fill_value)", "new_full(input, size, fill_value)"),
        reads=("fill_value",),
        blind=True,
        fresh=True,
    ),
    *of_kind(Kind.BLANK, "new_tensor(input, data)", reads=("data",), blind=True, fresh=True),
    *of_kind(
        Kind.DISCRETE,
        *("not_equal", "less", "less_equal", "greater", "greater_equal"),
        *("eq", "ne", "lt", "le", "gt", "ge", "not", "invert", "isnan", "isinf", "isfinite", "isposinf"),
        *("isneginf", "isreal", "isclose", "isin", "signbit", "argmax", "argmin", "argsort", "argwhere"),
        *("logical_not", "logical_and", "logical_or", "logical_xor", "bitwise_not", "bitwise_and"),
        *("bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift", "and", "or", "xor"),
        *("lshift", "rshift", "nonzero", "any", "all", "equal", "searchsorted", "bucketize", "allclose"),
        *("count_nonzero", "bincount", "one_hot", "unravel_index", "histc"),
        discrete=True,
        fresh=True,
    ),
    # What is whole already stays as it is.
    *of_kind(Kind.DISCRETE, "long", "byte", "short", "char", discrete=True),
    *of_kind(Kind.CUT, "item", "tolist", "bool", "int", discrete=True),
    *of_kind(Kind.CUT, "detach", "data", "numpy", "float_", "index_", "complex_", "array"),
    *of_kind(
        Kind.RANDOM,
        *("bernoulli", "normal", "multinomial", "uniform", "exponential", "gumbel_softmax", "poisson"),
        *("cauchy", "log_normal", "geometric", "random"),
    ),
    *of_kind(
        Kind.RANDOM,
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
        blind=True,
        fresh=True,
    ),
    *of_kind(
        Kind.KERNEL,
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
    ),
)
MODULES: Mapping[type[nn.Module], Build] = {}
RULES: Mapping[type[nn.Module], Rule] = {}
_BLANKS = {key for each in CALLS if each.kind is Kind.BLANK for key in each.keys()}  # noqa: SIM118 -- no mapping


def is_blank(function: Any) -> bool:
    """Whether a function or method makes a tensor of sizes.

    Example:
        >>> is_blank("new_zeros"), is_blank(len)
        (True, False)

    """
    return name_of_call(function) in _BLANKS
