"""Weights of recurrent layers, from Keras' layout to torch's and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rewriter.keras.activations import activation_name
from rewriter.keras.installed import kind_of
from rewriter.keras.layers.contract import UnsupportedError
from rewriter.keras.weights import tensor_of

#: Gates of Keras in torch's order. It is its own inverse: a GRU's are z r h, and r z n.
ORDER = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "RNN": (0,)}
_MODES = {"LSTMCell": "LSTM", "GRUCell": "GRU", "SimpleRNNCell": "RNN"}


class TorchWeights(NamedTuple):
    """The weights of one direction, as torch names them; biases are None together."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None


def torch_weights(mode: str, kernel: Tensor, recurrent_kernel: Tensor, bias: Tensor | None) -> TorchWeights:
    """Bring weights of Keras into torch's layout.

    Args:
        mode: ``"LSTM"``, ``"GRU"`` or ``"RNN"``.
        kernel: (I, G).
        recurrent_kernel: (H, G).
        bias: (G,), or (2, G) for a GRU, or None.

    Example:
        >>> torch_weights("GRU", torch.arange(3.0)[None], torch.zeros(1, 3), None).weight_ih.flatten()
        tensor([1., 0., 2.])

    """
    biases = [None, None]
    if bias is not None:
        rows = list(bias) if bias.dim() == 2 else [bias, torch.zeros_like(bias)]
        biases = [_reordered(mode, row) for row in rows]  # type: ignore[misc]  # tensors
    return TorchWeights(_reordered(mode, kernel.t()), _reordered(mode, recurrent_kernel.t()), *biases)


def keras_weights(mode: str, weights: TorchWeights) -> list[Tensor]:
    """Bring weights of torch into Keras' layout: kernel, recurrent kernel and bias, if there is one.

    Args:
        mode: ``"LSTM"``, ``"GRU"`` or ``"RNN"``.
        weights: of one direction.

    Example:
        >>> one = torch_weights("LSTM", torch.randn(3, 8), torch.randn(2, 8), torch.randn(8))
        >>> [tuple(each.shape) for each in keras_weights("LSTM", one)]
        [(3, 8), (2, 8), (8,)]

    """
    kernels = [_reordered(mode, each).t() for each in weights[:2]]
    if weights.bias_ih is None or weights.bias_hh is None:
        return kernels
    biases = [_reordered(mode, each) for each in (weights.bias_ih, weights.bias_hh)]
    return [*kernels, torch.stack(biases) if mode == "GRU" else biases[0] + biases[1]]


def _reordered(mode: str, tensor: Tensor) -> Tensor:
    blocks = tensor.detach().chunk(len(ORDER[mode]))
    return torch.cat([blocks[k] for k in ORDER[mode]])


def torch_layer(layer: Any) -> nn.Module:
    """Return torch's layer, or cell, with the weights of one of Keras', as copies.

    Args:
        layer: an ``LSTM``, ``GRU`` or ``SimpleRNN``, an ``RNN`` of one cell, a ``Bidirectional`` of one of
            them, or a cell.

    Raises:
        UnsupportedError: for one that torch has not.

    """
    kind = kind_of(layer)
    if kind in _MODES:
        return _cell(layer)
    both = kind == "Bidirectional"
    parts = [layer.forward_layer, layer.backward_layer] if both else [layer]
    if kind not in ("Bidirectional", "LSTM", "GRU", "SimpleRNN", "RNN") or any(
        kind_of(each.cell) not in _MODES for each in parts
    ):
        raise UnsupportedError(f"torch has no layer like {type(layer).__name__} with this cell")
    if [each.go_backwards for each in parts] != [False, True][: len(parts)]:
        raise UnsupportedError(
            "it goes backwards, which torch's layers do only beside one that goes forwards"
        )
    if both and layer.merge_mode != "concat":
        raise UnsupportedError(
            f"its merge_mode is {layer.merge_mode!r}; torch's layers put both directions side by side, as "
            "'concat' does"
        )
    cells = [each.cell for each in parts]
    if len({(_mode(cell), cell.units, cell.use_bias) for cell in cells}) > 1:
        raise UnsupportedError("its two directions are of different kinds or sizes")
    mode, more = _mode(cells[0]), _nonlinearity(cells[0])
    made: Any = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}[mode]
    found = made(
        cells[0].kernel.shape[0],
        cells[0].units,
        bias=cells[0].use_bias,
        batch_first=True,
        bidirectional=both,
        **more,
    )
    for suffix, cell in zip(("_l0", "_l0_reverse"), cells, strict=False):
        _set(found, _weights(cell), suffix)
    module: nn.Module = found.to(_weights(cells[0]).weight_ih.dtype).eval()
    return module


def _cell(cell: Any) -> nn.Module:
    made: Any = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}[_mode(cell)]
    found = made(cell.kernel.shape[0], cell.units, bias=cell.use_bias, **_nonlinearity(cell))
    _set(found, _weights(cell), "")
    module: nn.Module = found.eval()
    return module


def _mode(cell: Any) -> str:
    mode = _MODES[str(kind_of(cell))]
    if not cell.built:
        raise UnsupportedError("it has no weights yet: call it once")
    if mode == "GRU" and not cell.reset_after:
        raise UnsupportedError("its reset_after is False; torch's GRU resets after the hidden weights")
    names = [activation_name(cell.activation), activation_name(getattr(cell, "recurrent_activation", None))]
    expected = [["tanh", "sigmoid"]] if mode != "RNN" else [["tanh", "linear"], ["relu", "linear"]]
    if names not in expected:
        raise UnsupportedError(f"its activations are {', '.join(names)}; torch's are tanh and sigmoid")
    return mode


def _nonlinearity(cell: Any) -> dict[str, str]:
    return {"nonlinearity": activation_name(cell.activation)} if _mode(cell) == "RNN" else {}


def _weights(cell: Any) -> TorchWeights:
    held = [cell.kernel, cell.recurrent_kernel, *([cell.bias] if cell.use_bias else [])]
    kernel, recurrent_kernel, *bias = [tensor_of(each).detach() for each in held]
    return torch_weights(_mode(cell), kernel, recurrent_kernel, bias[0] if bias else None)


def _set(module: nn.Module, weights: TorchWeights, suffix: str) -> None:
    for name, tensor in weights._asdict().items():
        if tensor is not None:
            setattr(module, name + suffix, nn.Parameter(tensor.clone()))


def weights_of(module: nn.Module, layer: int = 0, *, reverse: bool = False) -> TorchWeights:
    """Return the weights of one layer and direction of torch's, or of a cell.

    Example:
        >>> weights_of(nn.GRU(3, 2)).weight_ih.shape
        torch.Size([6, 3])

    """
    suffix = f"_l{layer}{'_reverse' if reverse else ''}" if isinstance(module, nn.RNNBase) else ""
    found: dict[str, Any] = {name: getattr(module, name + suffix, None) for name in TorchWeights._fields}
    return TorchWeights(**found)


def arrays(tensors: Sequence[Tensor]) -> list[Any]:
    """Return tensors as arrays that Keras takes."""
    return [each.detach().cpu().contiguous().numpy() for each in tensors]
