"""A model that was rewritten without data is held against the original when it is first called."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.errors import RewriteError
from passes.graph.graph_module import Lowered
from passes.leaves import Atom, Layout
from passes.user_code.clone import clone_structure
from passes.user_code.hooks import OwnHook, hooks_of, modes_kept, take_out_hooks
from passes.user_code.reach import Unchanging, reached, reaches_module
from passes.user_code.state import PLAIN
from passes.user_code.surroundings import Place, places_outside
from rewriter.compiler.proof import UnprovenError, prove_call, wrong
from rewriter.compiler.report import Report
from rewriter.compiler.signature import signature, without_sizes

# Attributes that every module has.
_TORCHS = frozenset(vars(nn.Module()))
_UNWATCHED: ContextVar[bool] = ContextVar("unwatched", default=False)


@contextmanager
def unwatched() -> Iterator[None]:
    """Let rewritten models be called, for a time, without a proof.

    Example:
        >>> with unwatched():
        ...     pass

    """
    token = _UNWATCHED.set(True)
    try:
        yield
    finally:
        _UNWATCHED.reset(token)


def prove_first(model: nn.Module, inputs: Any) -> None:
    """Prove a call of a rewritten model in evaluation mode, before somebody else's explainer makes it.

    Args:
        model: any model; one that was not rewritten without data is left alone.
        inputs: a tensor, or a list or tuple of arguments.

    Raises:
        UnprovenError: if the model computes something else than the original.

    """
    before = FirstCalls.of(model)
    if before is None:
        return
    with modes_kept(model):
        before(model.eval(), tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,), {})


class OfAPickle(OwnHook):
    """Says of a rewritten model that was pickled that there is no original by now to compare it with."""

    def __call__(self, rewritten: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note it in the report."""
        Report.of(rewritten).proven.note(
            "not compared since it was loaded from a pickle, which holds no code of the original's: "
            "decompose(model) where it was loaded is compared"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return OfAPickle, ()


class FirstCalls(OwnHook, Unchanging):
    """Compares a rewritten model with the original at the first call of each signature.

    What belongs to a signature: the structure of the arguments, shapes, dtypes and devices of tensors, plain
    values, the mode of each module, torch's default dtype and its like, and what the original's code reads
    outside of the model. Where only sizes are new, outputs are compared, else gradients of the inputs, too.
    What cannot be compared is noted in the report. Copies of the
    rewritten model share this object; weights are taken from the model that is called.

    Args:
        original: the user's model.
        rewritten: made of it.
        lower: rewrites a model; as its own code with rewritten layers for the reason ``code=``.
        replaced: names of the types for which the user gave replacements.

    """

    def __init__(
        self,
        original: nn.Module,
        rewritten: nn.Module,
        lower: Callable[..., nn.Module],
        replaced: Sequence[str] = (),
    ) -> None:
        self.replaced = tuple(replaced)
        self._original = clone_structure(original)
        self.lower = lower
        self._outside: list[Place] = places_outside({type(each) for each in original.modules()})
        self._seen: set[Hashable] = set()
        self._lock = threading.RLock()
        self._know(rewritten)
        # So that copies with weights of their own do not hold on to these.
        for owner, name, tensor in _weights(self._original):
            if self._weight(rewritten, owner, name) is not None:
                _set_weight(self._original, owner, name, torch.empty_like(tensor, device="meta"))

    def __reduce__(self) -> tuple[Any, ...]:
        return OfAPickle, ()

    def _know(self, rewritten: nn.Module) -> None:
        self._names = Report.of(rewritten).parameter_names
        self._structure = _structure(rewritten)
        self._hooks = hooks_of(rewritten)

    @staticmethod
    def of(model: nn.Module) -> FirstCalls | None:
        """Return what compares the calls of a model, None if nothing does."""
        hooks = [model.__dict__.get("_before_call"), *model._forward_pre_hooks.values()]
        return next((each for each in hooks if isinstance(each, FirstCalls)), None)

    def __call__(self, rewritten: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Prove a call before it is made, unless one like it was proven.

        Raises:
            UnprovenError: if the rewritten model, also as code, computes something else.

        """
        if _UNWATCHED.get() or _is_recorded():
            return
        try:
            if (why := _why_no_numbers((args, kwargs))) is None:
                self._held(rewritten, args, kwargs)
        except _NotComparedError as error:
            why = str(error)
        if why:
            Report.of(rewritten).proven.note(why)

    def _held(self, rewritten: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = signature(rewritten, args, kwargs, self._outside)
        if found in self._seen:
            return
        with self._lock, unwatched():
            unsized = without_sizes(found)
            self._prove(rewritten, args, kwargs, gradients=unsized not in self._seen)
            self._seen |= {found, unsized}

    def _prove(
        self, rewritten: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, gradients: bool
    ) -> None:
        original = self.original_of(rewritten)
        plain = rewritten
        if hooks_of(rewritten) != self._hooks:
            # What the user hooked to it since it was made is the user's.
            plain = clone_structure(rewritten)
            take_out_hooks(plain, self._hooks)
        try:
            found = prove_call(original, plain, args, kwargs, gradients=gradients)
        except UnprovenError as error:
            code = f"a graph of it computes something else: {error}"
            if plain is not rewritten or not isinstance(rewritten, Lowered) or not rewritten.takes_by_name():
                raise wrong(original, str(error), self.replaced) from None
            whole = self.lower(original, code=code)
            try:
                found = prove_call(original, whole, args, kwargs)
            except UnprovenError as still:
                raise wrong(original, str(still), self.replaced) from None
            rewritten.become(whole)
            replace(Report.of(whole), islands={"": code}).attach(rewritten)
            self._know(rewritten)
        Report.of(rewritten).proven.add(found)

    def _weight(self, rewritten: nn.Module, owner: str, name: str) -> Tensor | None:
        full = f"{owner}.{name}".lstrip(".")
        # What a replacement of the user's copied is nowhere.
        parts = []
        for path in self._names.get(full, (full,)):
            where, _, leaf = path.rpartition(".")
            try:
                module = rewritten.get_submodule(where)
            except AttributeError:
                return None
            held: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
            tensor = held.get(leaf)
            if tensor is None:
                return None
            parts.append(tensor)
        if len(parts) < 2:
            return parts[0] if parts else None
        return torch.cat([each.detach() for each in parts])

    def original_of(self, rewritten: nn.Module) -> nn.Module:
        """Return the original with the weights and the modes that the rewritten model has now.

        Raises:
            RewriteError: if there is none for what the rewritten model has become since it was made.

        """
        if (changed := self._changed(rewritten)) is not None:
            raise _NotComparedError(
                f"not compared: {changed or 'the model itself'} is none of the modules that decompose made"
            )
        original = clone_structure(self._original)
        for owner, name, own in _weights(original):
            tensor = self._weight(rewritten, owner, name)
            if tensor is not None:
                _set_weight(original, owner, name, tensor)
            elif own.is_meta:
                raise _NotComparedError(f"not compared: it has no {f'{owner}.{name}'.lstrip('.')} any more")
        _set_state(original, rewritten)
        modes = {name: module.training for name, module in rewritten.named_modules()}
        for name, module in original.named_modules():
            # What became part of a graph is in the mode of what it was a part of.
            while name not in modes:
                name = name.rpartition(".")[0]
            module.training = modes[name]
        return original

    def _changed(self, rewritten: nn.Module) -> str | None:
        """Return the name of a module that was put in or taken out since the model was made."""
        made, now = self._structure, _structure(rewritten)
        if made.keys() != now.keys():
            return min(made.keys() ^ now.keys())
        return next((name for name, kind in made.items() if now[name] != kind), None)


class _NotComparedError(RewriteError):
    """Says why a call is not compared, as a note of the report."""


def _weights(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for owner, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    yield owner, name, tensor


def _set_weight(model: nn.Module, owner: str, name: str, tensor: Tensor) -> None:
    module = model.get_submodule(owner)
    if name in module._buffers:
        module._buffers[name] = tensor
    else:
        is_parameter = isinstance(tensor, nn.Parameter)
        module._parameters[name] = (
            tensor if is_parameter else nn.Parameter(tensor, requires_grad=tensor.is_floating_point())  # type: ignore[assignment]
        )


def _set_state(original: nn.Module, rewritten: nn.Module) -> None:
    """Give the user's modules what theirs keep by now in code that stayed the user's."""
    theirs = dict(rewritten.named_modules())
    for name, module in original.named_modules():
        if type(theirs.get(name)) is type(module):
            kept = {key: value for key, value in vars(theirs[name]).items() if key not in _TORCHS}
            vars(module).update({key: kept[key] for key, value in kept.items() if not reaches_module(value)})


def _structure(model: nn.Module) -> dict[str, Hashable]:
    return {name: (type(module), _settings(module)) for name, module in model.named_modules() if name}


def _settings(module: nn.Module) -> Hashable:
    """Return the plain values that an atom was made with; other modules may assign theirs."""
    if not isinstance(module, Atom | Layout):
        return ()
    return tuple((k, v) for k, v in vars(module).items() if k != "training" and isinstance(v, PLAIN))


def _is_recorded() -> bool:
    """Whether a call is compiled, exported or traced by torch, which writes down what we would do."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _why_no_numbers(arguments: Any) -> str | None:
    """Return why a call computes no numbers that could be compared, "" if that is not worth a word."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return f"{_ALONE} in a transform of torch.func, such as vmap or grad"
    if torch._C._len_torch_dispatch_stack():
        return f"{_ALONE} under a TorchDispatchMode"
    for each in reached(arguments):
        if isinstance(each, fx.Proxy):
            return ""
        if isinstance(each, Tensor) and (each.is_meta or type(each) not in (Tensor, nn.Parameter)):
            kind = "meta tensor" if each.is_meta else type(each).__qualname__
            return f"{_ALONE} of a {kind}"
    return None


_ALONE = "not compared: a call"
