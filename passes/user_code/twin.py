"""Run a user's code on a copy of a model without any effect on the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from passes.user_code.clone import private_clone


class Twin:
    """A clone of a model with tensors and objects of its own, for code that may write to them.

    Args:
        original: the model; it stays as it is whatever runs on ``model``.

    Example:
        >>> original = nn.BatchNorm1d(2)
        >>> twin = Twin(original)
        >>> twin.model.running_mean.add_(1)
        tensor([1., 1.])
        >>> twin.written(), original.running_mean
        (['running_mean'], tensor([0., 0.]))

    """

    def __init__(self, original: nn.Module) -> None:
        self.model = private_clone(original)
        self._copied: dict[int, Tensor] = {}
        self._shared: dict[int, Tensor] = {}
        self._own: dict[int, tuple[Tensor, int, int]] = {}
        self._replace_tensors(self._copy)

    def written(self) -> list[str]:
        """Return the places of the tensors that were changed in place or given new data."""
        changed = {
            id(tensor)
            for tensor, version, address in self._own.values()
            if tensor._version != version or tensor.data_ptr() != address
        }
        return [place for place, tensor in _tensors(self.model) if id(tensor) in changed]

    def share_again(self) -> nn.Module:
        """Return the clone, with the original's tensors in place of its own."""
        self._replace_tensors(lambda tensor: self._shared.get(id(tensor), tensor))
        return self.model

    def _copy(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self._copied:
            return self._copied[id(tensor)]
        copied = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
        self._copied[id(tensor)] = copied
        self._shared[id(copied)] = tensor
        self._own[id(copied)] = (copied, copied._version, copied.data_ptr())
        return copied

    def _replace_tensors(self, replacement: Any) -> None:
        for module in self.model.modules():
            for holder in (module._parameters, module._buffers, module.__dict__):
                for key, value in holder.items():
                    if isinstance(value, Tensor):
                        holder[key] = replacement(value)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (f"{name}.{key}".lstrip("."), value)
        for name, module in model.named_modules()
        for holder in (module._parameters, module._buffers, module.__dict__)
        for key, value in holder.items()
        if isinstance(value, Tensor)
    ]
