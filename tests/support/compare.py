"""Compare a rewritten model with its original: the oracle is the original ``nn`` module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

# Promised by the library; gradients may differ ten times as much, because they sum over time steps.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def leaves(value: object, place: str = "output") -> dict[str, Tensor]:
    """Return all tensors in a structure by their place in it."""
    if isinstance(value, Tensor):
        return {place: value}
    if isinstance(value, Mapping):
        items = [(f"{place}[{key!r}]", item) for key, item in value.items()]
    elif dataclasses.is_dataclass(value):
        items = [(f"{place}.{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, tuple | list):
        items = [(f"{place}[{k}]", item) for k, item in enumerate(value)]
    else:
        return {}
    return {path: leaf for name, item in items for path, leaf in leaves(item, name).items()}


def skeleton(value: object) -> object:
    """Return the types of a structure, without its numbers."""
    if isinstance(value, Tensor):
        return (Tensor, value.dtype, tuple(value.shape))
    if isinstance(value, Mapping):
        return (type(value), {key: skeleton(item) for key, item in value.items()})
    if isinstance(value, tuple | list):
        return (type(value), [skeleton(item) for item in value])
    return type(value)


def assert_close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Assert equality relative to the largest value that is expected, at least 1."""
    assert got.shape == expected.shape, what
    assert got.dtype == expected.dtype, what
    if not expected.numel():
        return
    scale = max(1.0, expected.abs().max().item())
    worst = (got.double() - expected.double()).abs().max().item()
    assert worst <= tolerance * scale, f"{what}: {worst:.3g} > {tolerance:.0e} * {scale:.3g}"


def assert_same_model(
    original: nn.Module, rewritten: nn.Module, *args: object, copied: bool = False, **kwargs: object
) -> None:
    """Assert equal outputs, structure, input gradients and, unless they are ``copied``, parameters'."""
    inputs = [leaf for leaf in leaves((args, kwargs)).values() if leaf.is_floating_point()]
    for leaf in inputs:
        leaf.requires_grad_(leaf.is_leaf)
    inputs = [leaf for leaf in inputs if leaf.requires_grad]
    results = []
    for model in (original, rewritten):
        torch.manual_seed(1)
        output = model(*args, **kwargs)
        results.append((output, _gradients(model, output, inputs, list(original.parameters()))))
    (expected, expected_grads), (got, got_grads) = results
    assert skeleton(got) == skeleton(expected)
    tolerance = TOLERANCE[next(iter(leaves(expected).values())).dtype]
    for place, leaf in leaves(expected).items():
        assert_close(leaves(got)[place], leaf, tolerance, place)
    count = len(inputs) if copied else len(expected_grads)
    for k in range(count):
        a, b = got_grads[k], expected_grads[k]
        assert (a is None) == (b is None), f"gradient {k}"
        if a is not None and b is not None:
            assert_close(a, b, 10 * tolerance, f"gradient {k}")


def _gradients(
    model: nn.Module, output: object, inputs: list[Tensor], parameters: list[Tensor]
) -> list[Tensor | None]:
    floats = [leaf for leaf in leaves(output).values() if leaf.requires_grad]
    # Weights of the sum differ from element to element, so that no two errors cancel.
    weighted = ((leaf * torch.linspace(0.5, 1.5, leaf.numel()).view(leaf.shape)).sum() for leaf in floats)
    total = sum(weighted, torch.zeros(()))
    wanted = [*inputs, *parameters]
    return list(torch.autograd.grad(total, wanted, allow_unused=True))


def packed_like(x: Tensor, lengths: list[int], *, sort: bool) -> PackedSequence:
    """Pack (T, B, F) sequences."""
    from torch.nn.utils.rnn import pack_padded_sequence

    if sort:
        lengths = sorted(lengths, reverse=True)
    return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sort)
