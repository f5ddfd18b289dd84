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
from torch.utils import _pytree as pytree

from passes.graph.graph_module import Lowered
from passes.leaves import Atom, Layout
from passes.recurrent.recurrence import Recurrence
from passes.user_code.clone import clone_structure
from passes.user_code.hooks import OwnHook, has_hooks, modes_kept
from passes.user_code.reach import Unchanging, reaches_module
from passes.user_code.surroundings import PLAIN, Place, places_outside, values_at
from rewriter.compiler.proof import UnprovenError, prove_call, wrong
from rewriter.compiler.report import Report

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
    hooks = [model.__dict__.get("_before_call"), *model._forward_pre_hooks.values()]
    before = next((each for each in hooks if isinstance(each, FirstCalls)), None)
    if before is None:
        return
    with modes_kept(model):
        before(model.eval(), tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,), {})


class FirstCalls(OwnHook, Unchanging):
    """Compares a rewritten model with the original at the first call of each signature.

    What belongs to a signature: the structure of the arguments, shapes, dtypes and devices of tensors, plain
    values, the mode of each module, and what the original's code reads outside of the model. Where only sizes
    are new, outputs are compared, else gradients of the inputs, too. Copies of the
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
        self._replaced = tuple(replaced)
        self._original = clone_structure(original)
        self._lower = lower
        self._names = Report.of(rewritten).parameter_names
        self._structure = _structure(rewritten)
        self._outside: list[Place] = places_outside({type(each) for each in original.modules()})
        self._seen: set[Hashable] = set()
        self._lock = threading.RLock()
        # So that copies with weights of their own do not hold on to these.
        for owner, name, tensor in _weights(self._original):
            if self._weight(rewritten, owner, name) is not None:
                _set_weight(self._original, owner, name, torch.empty_like(tensor, device="meta"))

    def __call__(self, rewritten: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Prove a call before it is made, unless one like it was proven.

        Raises:
            UnprovenError: if the rewritten model, also as code, computes something else.

        """
        if _UNWATCHED.get() or not _is_plain_run((args, kwargs)):
            return
        signature = self._signature(rewritten, args, kwargs)
        if signature in self._seen:
            return
        with self._lock, unwatched():
            if _structure(rewritten) != self._structure or _is_hooked(rewritten):
                return
            unsized = _without_sizes(signature)
            self._prove(rewritten, args, kwargs, gradients=unsized not in self._seen)
            self._seen |= {signature, unsized}

    def _prove(
        self, rewritten: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, gradients: bool
    ) -> None:
        original = self._with_weights_of(rewritten)
        if original is None:
            return
        try:
            found = prove_call(original, rewritten, args, kwargs, gradients=gradients)
        except UnprovenError as error:
            code = f"a graph of it computes something else: {error}"
            if not isinstance(rewritten, Lowered) or not rewritten.takes_by_name():
                raise wrong(original, str(error), self._replaced) from None
            whole = self._lower(original, code=code)
            try:
                found = prove_call(original, whole, args, kwargs)
            except UnprovenError as still:
                raise wrong(original, str(still), self._replaced) from None
            _report_code(rewritten, whole, rewritten.become(whole), code)
            self._structure = _structure(rewritten)
            self._names = Report.of(rewritten).parameter_names
        if found is not None:
            Report.of(rewritten).proven.add(found)

    def _signature(self, rewritten: nn.Module, args: Any, kwargs: Any) -> tuple[Hashable, ...]:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        modes = tuple(
            each.training for each in rewritten.modules() if not isinstance(each, Atom | Layout | Recurrence)
        )
        autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        return spec, tuple(map(_kind, leaves)), modes, autocast, values_at(self._outside)

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

    def _with_weights_of(self, rewritten: nn.Module) -> nn.Module | None:
        """Return the original with the weights and the modes that the rewritten model has now."""
        original = clone_structure(self._original)
        for owner, name, own in _weights(original):
            tensor = self._weight(rewritten, owner, name)
            if tensor is not None:
                _set_weight(original, owner, name, tensor)
            elif own.is_meta:
                return None
        _set_state(original, rewritten)
        modes = {name: module.training for name, module in rewritten.named_modules()}
        for name, module in original.named_modules():
            # What became part of a graph is in the mode of what it was a part of.
            while name not in modes:
                name = name.rpartition(".")[0]
            module.training = modes[name]
        return original


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


def _structure(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules() if name]


def _is_hooked(model: nn.Module) -> bool:
    """Whether somebody hooked something to the model, or gave a part another forward, since it was made."""
    return any(has_hooks(each) or "forward" in each.__dict__ for each in model.modules())


def _is_plain_run(arguments: Any) -> bool:
    """Whether numbers are computed: nothing traces, exports, compiles or transforms the call."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    leaves = pytree.tree_leaves(arguments)
    if any(isinstance(each, Tensor) and each.is_meta for each in leaves):
        return False
    return not any(
        isinstance(each, Tensor) and type(each) not in (Tensor, nn.Parameter) for each in leaves
    ) and not any(isinstance(each, fx.Proxy) for each in leaves)


def _kind(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    if isinstance(leaf, PLAIN):
        return type(leaf), leaf
    parts = (
        [each for each in vars(leaf).values() if isinstance(each, Tensor)]
        if hasattr(leaf, "__dict__")
        else []
    )
    return type(leaf), tuple((each.shape, each.dtype) for each in parts)


def _without_sizes(signature: Hashable) -> Hashable:
    """Return the same for all sizes of tensors."""
    if isinstance(signature, torch.Size):
        return len(signature)
    return tuple(map(_without_sizes, signature)) if type(signature) is tuple else signature


def _report_code(rewritten: Lowered, whole: nn.Module, name: str, code: str) -> None:
    """Tell what became of the model, whose parts now lie below a module."""
    report = Report.of(whole)
    names = {old: tuple(f"{name}.{path}" for path in paths) for old, paths in report.parameter_names.items()}
    unchanged = {
        path: (f"{name}.{path}",)
        for path, _ in whole.named_parameters(remove_duplicate=False)
        if path not in names
    }
    replace(report, islands={"": code}, parameter_names=unchanged | names).attach(rewritten)
