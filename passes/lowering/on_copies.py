"""Call a layer that may overwrite what it takes, so that what it took is still there afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from passes.user_code.structure import map_tensors, tensors_in


class CallOnCopies:
    """One call of a layer, with copies; what it writes to them is written to the tensors in the end.

    Whatever else stands for their memory, another name or what a view was taken of, then holds what the
    layer wrote, by way of what became of its result between the two, in hooks say.

    Example:
        >>> import torch
        >>> call = CallOnCopies()
        >>> def layer(x):
        ...     return call.inside(torch.Tensor.mul_, x, 2) + 1  # what became of the result
        >>> x = torch.ones(2)
        >>> call.around(layer, x) is x, x
        (True, tensor([3., 3.]))

    """

    def __init__(self) -> None:
        self.copies: list[Tensor] = []
        self.given: list[Tensor] = []

    def inside(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make the call itself."""
        copies = {id(each): each.clone() for each in written_in((args, kwargs))}
        self.copies = list(copies.values())
        args, kwargs = map_tensors(lambda each: copies.get(id(each), each), (args, kwargs))
        result = plain(*args, **kwargs)
        self.given = tensors_in(result)
        return result

    def around(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make a call that makes the one inside, with what is in the place of these tensors.

        Returns:
            What the call returns; what was written by the tensor that it was written to.

        """
        taken = written_in((args, kwargs))
        result = call(*args, **kwargs)
        became = {id(old): new for old, new in zip(self.given, tensors_in(result), strict=True)}
        written: dict[int, Tensor] = {}
        for own, copy in zip(taken, self.copies, strict=True):
            if copy._version:
                new = became.get(id(copy), copy)
                own.copy_(new)
                written[id(new)] = own
        return map_tensors(lambda each: written.get(id(each), each), result) if written else result


def written_in(values: Any) -> list[Tensor]:
    """Return the tensors, each once, that hold what may be explained.

    Example:
        >>> import torch
        >>> x = torch.ones(1)
        >>> written_in((x, {"mask": torch.tensor(True), "again": x}))
        [tensor([1.])]

    """
    found = {id(each): each for each in tensors_in(values) if each.is_floating_point() or each.is_complex()}
    return list(found.values())
