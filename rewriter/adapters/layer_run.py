"""Runs of a model in which somebody else's hooks see one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from passes.errors import RewriteError
from passes.leaves import Atom
from passes.lowering.on_copies import CallOnCopies
from passes.lowering.running_code import note_varying
from passes.user_code.structure import map_tensors, tensors_in
from rewriter.explainer.batch_places import Place, places_of, rows_back, rows_first


class LayerRun:
    """Has a layer called with tensors that have the batch in dimension 0, whatever the model has.

    Args:
        layer: has the hooks.
        name: of the layer.
        side: what of it is explained, ``"input"`` or ``"output"``.
        most: so many tensors at most; None for any number.
        seen: runs a copy of the model and returns the tensors that are explained.
        neuron: the index of one in a row, if one is asked for.

    """

    def __init__(
        self,
        layer: nn.Module,
        name: str,
        side: str,
        most: int | None,
        seen: Callable[[Any, Any], list[Tensor]],
        neuron: Any = None,
    ) -> None:
        self.layer = layer
        self.name = name
        self.side = side
        self.most = most
        self.seen = seen
        self.neuron = neuron
        # Copies of the model have a copy of all this.
        self.watched = id(layer)
        self.rows = 0
        self.calls = 0
        # Of each tensor that is explained; None before the model ran.
        self.places: list[Place | None] | None = None
        self.inside: Callable[..., Any] | None = None

    def start(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        if self._is_a_copys():
            return plain(*args, **kwargs)
        self.rows = next((len(each) for each in tensors_in((args, kwargs)) if each.dim()), 0)
        if self.places is None and self.rows:
            self.places = self._places(args, kwargs)
        self.calls = 0
        result = plain(*args, **kwargs)
        if not self.calls:
            raise RewriteError(
                f"{self.name}: is not reached, so there is nothing to explain; explain a layer that the "
                "model calls when it runs"
            )
        return result

    def _places(self, args: Any, kwargs: Any) -> list[Place | None] | None:
        """Find the batch, by runs on a few rows."""
        inputs = [each for each in tensors_in((args, kwargs)) if each.dim() and len(each) == self.rows]
        numbers = {id(each): k for k, each in enumerate(inputs)}

        def take(rows: list[Tensor]) -> list[Tensor]:
            few = map_tensors(
                lambda each: rows[numbers[id(each)]].detach().clone() if id(each) in numbers else each,
                (args, kwargs),
            )
            # Not as a part of the run that is explained, whose calls are given their rules.
            with torch._C.DisableTorchFunction():
                return self.seen(*few)

        try:
            return places_of(
                take, inputs, f"{self.name}: the rows of the batch cannot be told in its {self.side}"
            )
        except RewriteError:
            raise
        except Exception:
            # The model takes this number of rows alone.
            return None

    def through(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Let what a layer takes, or gives, go through its hooks alone."""
        if self._is_a_copys():
            return values
        self._count()
        tensors = self._explained(values)
        given = self.layer(*self._shown(tensors))
        return self._put_back(values, tensors, given)  # type: ignore[no-any-return]

    def around(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call a layer whose own code runs, with its hooks."""
        if self._is_a_copys():
            return _with_hooks(module, *args, **kwargs)
        self._count()
        call = CallOnCopies()
        try:
            return call.around(lambda *args, **kwargs: self._hooked(call, args, kwargs), *args, **kwargs)
        finally:
            self.inside = None

    def _hooked(self, call: CallOnCopies, args: Any, kwargs: Any) -> Any:
        to_input = self.side == "input"
        given, results = (args, kwargs), list[Any]()
        taken = self._explained(given) if to_input else explained_in(given)

        def inside(plain: Callable[..., Any], *tensors: Tensor) -> Any:
            args, kwargs = (
                self._put_back(given, taken, tensors) if to_input else _replaced(given, taken, tensors)
            )
            results.append(call.inside(plain, *args, **kwargs))
            explained = explained_in(results[0]) if to_input else self._shown(self._explained(results[0]))
            return explained[0] if len(explained) == 1 else tuple(explained)

        self.inside = inside
        after = _with_hooks(self.layer, *(self._shown(taken) if to_input else taken))
        result = results[0]
        if to_input:
            return _replaced(result, explained_in(result), after)
        return self._put_back(result, self._explained(result), after)

    def forward(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do what the layer does between its hooks."""
        return plain(*args, **kwargs) if self.inside is None else self.inside(plain, *args)

    def _is_a_copys(self) -> bool:
        return id(self.layer) != self.watched

    def _count(self) -> None:
        self.calls += 1
        if self.calls > 1:
            raise more_than_once(self.name)

    def _explained(self, values: Any) -> list[Tensor]:
        """Return the tensors that are explained.

        Raises:
            RewriteError: if they are none that both libraries can explain.

        """
        packed = [each for each in pytree.tree_leaves(values, is_leaf=_is_packed) if _is_packed(each)]
        found = explained_in(values)
        shown = self._shown(found)
        wrong = [*packed, *(each for each in shown if not each.dim() or len(each) != self.rows)]
        wrong += [] if self.most is None or len(shown) <= self.most else shown
        if wrong or not shown:
            most = "" if self.most is None else f", at most {self.most}"
            others: list[Any] = [*tensors_in(values)] or [None]
            raise RewriteError(
                f"{self.name}: its {self.side} is {', '.join(map(_described, wrong or found or others))}; "
                f"shap and captum explain floating point tensors with the batch, of {self.rows} here, in "
                f"dimension 0{most}: explain it with rewriter.DeepExplainer"
            )
        self._check_neuron(shown)
        return found

    def _check_neuron(self, shown: list[Tensor]) -> None:
        """Raise unless an index picks one number of each row."""
        if self.neuron is None or callable(self.neuron):
            return
        verb = "takes" if self.side == "input" else "gives"
        if len(shown) > 1:
            raise RewriteError(
                f"{self.name}: {verb} {len(shown)} tensors, {', '.join(map(_described, shown))}, got "
                f"neuron_selector={self.neuron!r}, which picks from one; pass a function of their tuple, "
                "neuron_selector=lambda tensors: tensors[0][:, ...] with one number per row"
            )
        index = self.neuron if isinstance(self.neuron, tuple) else (self.neuron,)
        sizes = tuple(shown[0].shape[1:])
        if len(index) != len(sizes) or not all(
            isinstance(each, slice) or -size <= each < size for each, size in zip(index, sizes, strict=True)
        ):
            raise RewriteError(
                f"{self.name}: {verb} rows of shape {sizes}, got neuron_selector={self.neuron!r}; pass an "
                "index into that shape, one number for each of its dimensions"
            )

    def _place(self, k: int) -> Place | None:
        return Place(0, 1) if self.places is None or isinstance(self.layer, Atom) else self.places[k]

    def _shown(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return what hooks see, without what is the same for all rows.

        Copies: what else is made of these tensors does not come through the layer.
        """
        places = [(each, self._place(k)) for k, each in enumerate(tensors)]
        return [rows_first(each, place, self.rows).clone() for each, place in places if place is not None]

    def _put_back(self, values: Any, tensors: list[Tensor], after: Any) -> Any:
        """Put what came through the hooks in the place of the tensors that they were shown for."""
        places = [(each, self._place(k)) for k, each in enumerate(tensors)]
        hooked = [(each, place) for each, place in places if place is not None]
        new = [rows_back(each, place) for each, (_, place) in zip(tensors_in(after), hooked, strict=True)]
        return _replaced(values, [each for each, _ in hooked], new)


def more_than_once(name: str) -> RewriteError:
    """Return the error for a layer that has several calls."""
    return RewriteError(
        f"{name}: runs more than once, and it cannot be told which of the calls is meant; explain a layer "
        "that runs once, or give each call a module of its own"
    )


def explained_in(values: Any) -> list[Tensor]:
    """Return the floating point tensors, each once.

    Example:
        >>> x = torch.ones(1)
        >>> explained_in((x, [x], torch.tensor(1)))
        [tensor([1.])]

    """
    return list({id(each): each for each in tensors_in(values) if each.is_floating_point()}.values())


class _Together(torch.autograd.Function):
    """Several tensors, each of which is used where one is: explainers ask for the gradients of all."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.clone() for each in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads


def _replaced(values: Any, old: list[Tensor], new: Any) -> Any:
    together: Any = _Together.apply(*tensors_in(new)) if old else ()  # type: ignore[no-untyped-call]
    note_varying(together)
    found = {id(before): after for before, after in zip(old, together, strict=True)}
    return map_tensors(lambda each: found.get(id(each), each), values)


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)


def _described(value: Any) -> str:
    return (
        f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    )


def _with_hooks(module: Any, *args: Any, **kwargs: Any) -> Any:
    # What torch calls unless a module has one of its own.
    return type(module)._call_impl(module, *args, **kwargs)
