"""Leaf modules that bring a layer's input into one layout and its output back into the caller's.

Inside a rewritten layer every sequence is time first and padded, in the batch order of the caller,
so that each step hands its atoms a batch-first (B, H): explainers that split dimension 0 in
samples and references rely on it. Layout modules only move numbers, hence are linear.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from passes.errors import InputError
from passes.leaves import Layout


class SequenceLayout(NamedTuple):
    """What :class:`SequenceEnd` needs to know to restore the caller's layout.

    Args:
        batched: the caller's input had a batch dimension.
        packed: the caller's input when it was packed, else None.
        lengths: (B,) lengths in the caller's batch order when packed, else None.

    """

    batched: bool
    packed: PackedSequence | None
    lengths: Tensor | None


class SequenceBegin(Layout):
    """Turn whatever ``nn.LSTM`` accepts into a time-first sequence and one state per direction.

    Args:
        name: qualified name of the layer, for error messages.
        input_size: features of the input.
        state_sizes: features of each state tensor: ``(H,)``, or ``(H_out, H_cell)`` for an LSTM.
        directions: layers times directions, the first dimension of the states.
        batch_first: whether a batched input is (B, T, I) rather than (T, B, I).

    Example:
        >>> begin = SequenceBegin("rnn", 3, (2,), 1, batch_first=True)
        >>> x, mask, layout, h = begin(torch.randn(4, 5, 3), None, torch.empty(0))
        >>> x.shape, mask, h.shape
        (torch.Size([5, 4, 3]), None, torch.Size([1, 4, 2]))

    """

    def __init__(
        self, name: str, input_size: int, state_sizes: tuple[int, ...], directions: int, *, batch_first: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.input_size = input_size
        self.state_sizes = state_sizes
        self.directions = directions
        self.batch_first = batch_first

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | tuple[Tensor, ...] | None, weight: Tensor
    ) -> tuple[Tensor | SequenceLayout | None, ...]:
        """Return ``(x, mask, layout, *states)``; ``weight`` tells the dtype that is expected.

        ``x`` is (T, B, I), ``mask`` (T, B, 1) bool or None, each state (layers x directions, B, H).

        Raises:
            InputError: for a type, shape or dtype that the original layer would not take.

        """
        if isinstance(input, PackedSequence):
            self._check_features(input.data, (2,), "packed data (sum of lengths, input_size)")
            check_tensor(self.name, input.data, weight)
            x, lengths = pad_packed_sequence(input)
            layout = SequenceLayout(True, input, lengths)
            mask = _mask(lengths, x)
        elif isinstance(input, Tensor):
            self._check_features(input, (2, 3), "(T, I), or with a batch dimension")
            check_tensor(self.name, input, weight)
            layout = SequenceLayout(input.dim() == 3, None, None)
            x = input if layout.batched else input.unsqueeze(1)
            if layout.batched and self.batch_first:
                x = x.transpose(0, 1)
            mask = None
        else:
            raise InputError(
                f"{self.name}: expected a Tensor or a PackedSequence as input, got {type(input).__name__}"
            )
        if x.shape[0] == 0:
            raise InputError(f"{self.name}: expected a sequence of at least 1 step, got length 0")
        return (x, mask, layout, *self._states(hx, x, layout.batched))

    def _check_features(self, x: Tensor, dims: tuple[int, ...], form: str) -> None:
        if x.dim() not in dims or x.shape[-1] != self.input_size:
            raise InputError(
                f"{self.name}: expected input of shape {form}, with {self.input_size} features last, "
                f"got {tuple(x.shape)}"
            )

    def _states(self, hx: Tensor | tuple[Tensor, ...] | None, x: Tensor, batched: bool) -> tuple[Tensor, ...]:
        batch = x.shape[1]
        if hx is None:
            dtype = self._state_dtype(x)
            return tuple(x.new_zeros(self.directions, batch, size, dtype=dtype) for size in self.state_sizes)
        given = named_states(hx, len(self.state_sizes), self.name)
        states = []
        for (label, state), size in zip(given, self.state_sizes, strict=True):
            expected = (self.directions, batch, size) if batched else (self.directions, size)
            check_state(self.name, label, state, expected, x)
            states.append((state if batched else state.unsqueeze(1)).to(self._state_dtype(x)))
        return tuple(states)

    def _state_dtype(self, x: Tensor) -> torch.dtype:
        """Autocast lowers the states of an ``nn.LSTM``, and of no other layer."""
        if len(self.state_sizes) == 2 and _autocast(x) and x.dtype is torch.float32:
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype


class SequenceDropout(nn.Dropout, Layout):
    """Dropout between two layers, drawing the numbers that torch draws.

    Torch drops elements of the packed data where sequences differ in length.

    Example:
        >>> SequenceDropout(0.5).eval()(torch.ones(2, 1, 1), SequenceLayout(True, None, None)).sum()
        tensor(2.)

    """

    def forward(self, x: Tensor, layout: SequenceLayout) -> Tensor:  # type: ignore[override]
        """Return ``x``, (T, B, F), with elements dropped in training mode."""
        if not self.training or layout.packed is None or layout.lengths is None:
            return super().forward(x)
        packed = _repack(x, layout)
        dropped = pad_packed_sequence(packed._replace(data=super().forward(packed.data)))
        return dropped[0]


class SequenceEnd(Layout):
    """Undo :class:`SequenceBegin` on the outputs and the final states.

    Args:
        batch_first: whether a batched output is (B, T, H) rather than (T, B, H).
        states: number of state tensors: 2 for an LSTM, else 1.

    Example:
        >>> end = SequenceEnd(batch_first=True, states=1)
        >>> out, h_n = end(SequenceLayout(True, None, None), torch.randn(5, 4, 2), torch.randn(4, 2))
        >>> out.shape, h_n.shape
        (torch.Size([4, 5, 2]), torch.Size([1, 4, 2]))

    """

    def __init__(self, *, batch_first: bool, states: int) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.states = states

    def forward(
        self, layout: SequenceLayout, out: Tensor, *finals: Tensor
    ) -> tuple[Tensor | PackedSequence, Tensor | tuple[Tensor, ...]]:
        """Return ``(output, h_n)`` or ``(output, (h_n, c_n))`` as the original does.

        ``out`` is (T, B, F); ``finals`` holds each direction's state, ``h`` of all, then ``c`` of all.
        """
        per_state = len(finals) // self.states
        stacked = [torch.stack(finals[k : k + per_state]) for k in range(0, len(finals), per_state)]
        if not layout.batched:
            stacked = [state.squeeze(1) for state in stacked]
        state = stacked[0] if self.states == 1 else tuple(stacked)
        return self._output(layout, out), state

    def _output(self, layout: SequenceLayout, out: Tensor) -> Tensor | PackedSequence:
        if layout.packed is not None:
            return _repack(out, layout)
        if not layout.batched:
            return out.squeeze(1)
        return out.transpose(0, 1) if self.batch_first else out


class CellBegin(Layout):
    """Turn whatever ``nn.LSTMCell`` accepts into a batch-first input and state.

    Args:
        name: qualified name of the cell, for error messages.
        input_size: features of the input.
        hidden_size: features of each state.
        states: number of state tensors: 2 for an LSTM cell, else 1.

    Example:
        >>> x, batched, h = CellBegin("cell", 3, 2, 1)(torch.randn(3), None, torch.empty(0))
        >>> x.shape, batched, h.shape
        (torch.Size([1, 3]), False, torch.Size([1, 2]))

    """

    def __init__(self, name: str, input_size: int, hidden_size: int, states: int) -> None:
        super().__init__()
        self.name = name
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.states = states

    def forward(
        self, input: Tensor, hx: Tensor | tuple[Tensor, ...] | None, weight: Tensor
    ) -> tuple[Tensor | bool, ...]:
        """Return ``(x, batched, *states)``: ``x`` (B, I), each state (B, H); ``weight`` tells the dtype.

        Raises:
            InputError: for a type, shape or dtype that the original cell would not take.

        """
        if not isinstance(input, Tensor):
            raise InputError(f"{self.name}: expected a Tensor as input, got {type(input).__name__}")
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise InputError(
                f"{self.name}: expected input of shape ({self.input_size},) or (B, {self.input_size}), "
                f"got {tuple(input.shape)}"
            )
        check_tensor(self.name, input, weight)
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            zeros = x.new_zeros(x.shape[0], self.hidden_size)
            return (x, batched, *([zeros] * self.states))
        expected = (x.shape[0], self.hidden_size) if batched else (self.hidden_size,)
        states = []
        for label, state in named_states(hx, self.states, self.name):
            check_state(self.name, label, state, expected, x)
            states.append(state if batched else state.unsqueeze(0))
        return (x, batched, *states)


class CellEnd(Layout):
    """Undo :class:`CellBegin` on the new state.

    Example:
        >>> CellEnd()(False, torch.ones(1, 2))
        tensor([1., 1.])

    """

    def forward(self, batched: bool, *states: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return ``h'`` or ``(h', c')``, without the batch dimension where the input had none."""
        restored = states if batched else tuple(state.squeeze(0) for state in states)
        return restored[0] if len(restored) == 1 else restored


def named_states(hx: Tensor | tuple[Tensor, ...], states: int, name: str) -> list[tuple[str, Tensor]]:
    """Pair the given states with their names in torch's documentation."""
    given = (hx,) if states == 1 else hx
    wanted = "a Tensor h" if states == 1 else "a tuple (h, c) of Tensors"
    if (
        not isinstance(given, tuple | list)
        or len(given) != states
        or not all(isinstance(state, Tensor) for state in given)
    ):
        got = f"a {type(hx).__name__}"
        if isinstance(hx, tuple | list):
            got += f" of ({', '.join(type(state).__name__ for state in hx)})"
        raise InputError(f"{name}: expected {wanted} as initial state, got {got}")
    return list(zip(("h", "c"), cast("tuple[Tensor, ...]", given), strict=False))


def check_tensor(name: str, input: Tensor, weight: Tensor) -> None:
    """Raise InputError unless the input is dense, beside the weights, and of their dtype or autocast."""
    if input.layout is not torch.strided:
        raise InputError(f"{name}: expected a dense input, got one of layout {input.layout}")
    if input.device != weight.device:
        raise InputError(
            f"{name}: expected input on {weight.device}, where the weights are, got {input.device}"
        )
    if input.dtype != weight.dtype and not _autocast(input):
        raise InputError(f"{name}: expected input of dtype {weight.dtype}, got {input.dtype}")


def _autocast(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def check_state(name: str, label: str, state: Tensor, expected: tuple[int, ...], x: Tensor) -> None:
    """Raise InputError unless ``state`` has the expected shape and the dtype of ``x``."""
    if tuple(state.shape) != expected:
        raise InputError(
            f"{name}: expected initial state {label} of shape {expected}, got {tuple(state.shape)}"
        )
    if state.device != x.device:
        raise InputError(f"{name}: expected initial state {label} on {x.device}, got {state.device}")
    if state.dtype != x.dtype and not _autocast(x):
        raise InputError(
            f"{name}: expected initial state {label} of the input's dtype {x.dtype}, got {state.dtype}"
        )


def _mask(lengths: Tensor, x: Tensor) -> Tensor | None:
    if bool((lengths == x.shape[0]).all()):
        return None
    steps = torch.arange(x.shape[0], device=x.device)
    return (steps[:, None] < lengths.to(x.device)[None, :]).unsqueeze(-1)


def _repack(out: Tensor, layout: SequenceLayout) -> PackedSequence:
    packed, lengths = layout.packed, layout.lengths
    assert packed is not None
    assert lengths is not None
    order = packed.sorted_indices
    if order is not None:
        out, lengths = out.index_select(1, order), lengths[order.cpu()]
    data = pack_padded_sequence(out, lengths).data
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
