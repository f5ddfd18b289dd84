"""What a call in running code writes to, and how it is made without writing there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from passes.operations.in_place import writes_first


def written_by(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the tensor, or the tensors, that a call writes numbers into; None if it writes none.

    Args:
        function: as a ``TorchFunctionMode`` sees it.
        args: of the call.
        kwargs: of the call.

    Example:
        >>> import torch
        >>> written_by(torch.relu_, ("x",), {}), written_by(torch.relu_, (), {"input": "x"})
        ('x', 'x')
        >>> written_by(torch.relu, ("x",), {"out": "y"}), written_by(torch.relu, ("x",), {})
        ('y', None)

    """
    if kwargs.get("out") is not None:
        return kwargs["out"]
    if not writes_first(function, args, kwargs):
        return None
    # Operators of aten name it as methods do.
    return args[0] if args else kwargs.get("input", kwargs.get("self"))


def without_out(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call that makes its result anew, of which torch has a gradient.

    Example:
        >>> without_out({"dim": 1, "out": "y"})
        {'dim': 1}

    """
    return {name: value for name, value in kwargs.items() if name != "out"}


def put(out: Any, result: Any) -> Any:
    """Write a result to where a call was told to, and return it as such a call does.

    Example:
        >>> import torch
        >>> out = torch.empty(0)
        >>> put(out, torch.ones(2)) is out, out
        (True, tensor([1., 1.]))

    """
    if isinstance(out, Tensor):
        # Torch gives an empty tensor the size of what it is to hold.
        return (out.resize_(result.shape) if out.shape != result.shape else out).copy_(result)
    parts = tuple(put(place, each) for place, each in zip(out, result, strict=True))
    if hasattr(result, "_fields"):
        return type(result)(*parts)
    # Torch's own named tuples take one sequence.
    return type(result)(parts)
