"""What lies on the way from input to output and is neither linear nor has a rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from passes.graph.dataflow import Dataflow
from passes.leaves import Atom, Layout
from passes.lowering.coverage import why_no_rule_for_call, why_no_rule_for_module
from passes.lowering.running_code import textbook_of
from passes.lowering.written import put, without_out, written_by
from passes.operations.catalogue import is_blind, is_discrete, operation_of
from passes.operations.names import name_of_call
from passes.operations.operation import CUTS, FIXED, RANDOM, Kind
from passes.operations.table import rule_of_module
from passes.recurrent.recurrence import Recurrence
from passes.user_code.hooks import has_hooks, set_forward
from passes.user_code.observe import Call, Observer, observe
from passes.user_code.structure import numbers_in, tensors_in
from rewriter.compiler.report import UncoveredReport

#: As :func:`torch.no_grad` has it.
WITHOUT_GRADIENTS = f"{CUTS}: it runs without gradients, as under torch.no_grad"


def is_covered(module: nn.Module) -> bool:
    """Whether a module only moves numbers, or has a rule and nothing hooked to it that could interfere."""
    return isinstance(module, Recurrence | Layout) or (
        rule_of_module(module) is not None and not has_hooks(module)
    )


def runs_as_code(module: nn.Module) -> bool:
    """Whether explainers give the calls in a module's own code their rules, if it stands in an island.

    Example:
        >>> runs_as_code(nn.CosineSimilarity()), runs_as_code(nn.Linear(1, 1))
        (True, False)

    """
    own = isinstance(module, Atom | Layout) or is_covered(module)
    return not own and why_no_rule_for_module(module) is not None


def is_inside(where: str, islands: Iterable[str]) -> bool:
    """Whether the module called ``where`` is an island or stands in one.

    Example:
        >>> is_inside("a.b", ["a"]), is_inside("ab", ["a"]), is_inside("a", [""])
        (True, False, True)

    """
    return any(each == "" or f"{where}.".startswith(f"{each}.") for each in islands)


def uncovered_nodes(model: nn.Module, islands: Mapping[str, str]) -> Iterator[UncoveredReport]:
    """Yield the nodes of a graph that no rule covers and that matter for its output.

    Args:
        model: after the lowering; what is not a GraphModule has no nodes.
        islands: modules of which the graph knows nothing; they are reported as such.

    Example:
        >>> class Model(nn.Module):
        ...     def forward(self, x):
        ...         return x.renorm(2, 0, 1.0) * x.shape[0] + 1
        >>> [(each.operation, each.reason) for each in uncovered_nodes(fx.symbolic_trace(Model()), {})]
        [('renorm', 'has no rule')]

    """
    if not isinstance(model, fx.GraphModule):
        return
    flow = Dataflow(model.graph)
    for node in _on_the_way(model.graph, flow):
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if is_covered(module) or node.target in islands:
                continue
            reason = why_no_rule_for_module(module)
            name, operation = str(node.target), type(module).__name__
        else:
            reason = _why_not(node, flow)
            name, operation = node.name, name_of_call(node.target)
        if reason is not None:
            yield UncoveredReport(name, operation, node.meta.get("source", ""), reason)
    for node in _made_of_masks(model, flow):
        name, operation = node.name, name_of_call(node.target)
        if node.op == "call_module":
            name, operation = str(node.target), type(model.get_submodule(str(node.target))).__name__
        yield UncoveredReport(name, operation, node.meta.get("source", ""), FIXED)


def _made_of_masks(model: fx.GraphModule, flow: Dataflow) -> Iterator[fx.Node]:
    """Yield the outputs that are numbers made of masks or indices alone: ``table[x.argmax()]``.

    A mask or index that a model returns beside its numbers is no such number.
    """
    for output in model.graph.nodes:
        for node in output.all_input_nodes if output.op == "output" else ():
            pending, seen = [node] if node in flow.discrete else [], set()
            while pending:
                each = pending.pop()
                if each not in seen and each in flow.discrete:
                    seen.add(each)
                    pending += each.all_input_nodes
            if any(_makes_numbers(each, flow) for each in seen):
                yield node


def _makes_numbers(node: fx.Node, flow: Dataflow) -> bool:
    """Whether a call makes numbers with a slope elsewhere out of masks or indices."""
    operation = None if node.op == "call_module" else operation_of(node.target)
    if node.op == "call_module" or (operation is not None and operation.casts):
        return True
    return any(each.op == "get_attr" for each in node.all_input_nodes)


def _why_not(node: fx.Node, flow: Dataflow) -> str | None:
    if _is_data_of_packed(node):
        return None
    reason = why_no_rule_for_call(node.target, node.args, node.kwargs, flow.varies, flow.is_discrete)
    return reason if node in flow.varying or reason == RANDOM else None


def _is_data_of_packed(node: fx.Node) -> bool:
    """Whether a node reads the data of a packed sequence, which have a gradient as a tensor's have not."""
    return (
        node.target is getattr
        and node.args[1] == "data"
        and "pack" in name_of_call(node.all_input_nodes[0].target).lower()
    )


def _on_the_way(graph: fx.Graph, flow: Dataflow) -> list[fx.Node]:
    """Return the calls whose numbers reach the output other than through a mask or index."""
    pending = [each for node in graph.nodes if node.op == "output" for each in node.all_input_nodes]
    seen: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node not in seen and node not in flow.discrete:
            seen.add(node)
            pending += node.all_input_nodes
    return [
        node
        for node in graph.nodes
        if node in seen
        and (node in flow.varying if node.op == "call_module" else node.op.startswith("call_"))
    ]


def uncovered_calls(
    model: nn.Module,
    islands: Iterable[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[UncoveredReport]:
    """Run a model once, without a trace of it, and list what no rule covers in the code of ``islands``.

    Args:
        model: after the lowering.
        islands: qualified names of the modules whose code torch.fx cannot follow.
        args: positional arguments.
        kwargs: keyword arguments.

    Example:
        >>> class Branching(nn.Module):
        ...     def forward(self, x):
        ...         return x.renorm(2, 0, 1.0) if x.dim() else x
        >>> [each.operation for each in uncovered_calls(Branching(), [""], (torch.zeros(2, 2),), {})]
        ['renorm']

    """
    run = _Coverage(islands)
    for tensor in tensors_in((args, kwargs)):
        # Integers are tokens, perhaps: what is looked up by them varies.
        run.note([tensor], tensor.dtype != torch.bool)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = observe(model, run, args, kwargs)
    return run.found(result)


class _Coverage(Observer):
    """Notes each call on what varies: why no rule covers it, what it reads and what it writes."""

    def __init__(self, islands: Iterable[str]) -> None:
        super().__init__()
        self.islands = tuple(islands)
        self.kinds: dict[int, str] = {}
        self.kept: list[Any] = []
        self.calls: list[tuple[UncoveredReport | None, set[int], set[int]]] = []

    def is_whole(self, module: nn.Module) -> bool:
        """A module with a rule is one call; in an island the code of one without is seen."""
        where = self._inside[-1] if self._inside else ""
        seen = is_inside(where, self.islands) and runs_as_code(module)
        return is_covered(module) or (super().is_whole(module) and not seen)

    def _is_blind(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        def depends(value: Any) -> bool:
            return self.varies(value) or self.is_discrete(value)

        return is_blind(call.function, args, kwargs, depends)

    def made(self, call: Call, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call, and find out what it does to numbers that depend on the input."""
        own = isinstance(call.function, nn.Module)
        operation = None if own else operation_of(call.function)
        if operation is not None and operation.kind is not Kind.RANDOM and self._is_blind(call, args, kwargs):
            return run(*args, **kwargs)
        read = {_storage(tensor) for tensor in tensors_in((args, kwargs)) if self.varies(tensor)}
        stepped = bool(read) or self.is_discrete((args, kwargs))
        target = None if own else written_by(call.function, args, kwargs)
        textbook = (
            None
            if own or _in_transform((args, kwargs))
            else textbook_of(call.function, self.varies, args, kwargs)
        )
        told = target is not None and kwargs.get("out") is target
        if textbook is not None and not isinstance(textbook[0], Atom):
            # The explainers make the calls of a textbook one by one, so each is judged by itself.
            result, reason = self._written_out(*textbook), None
            told = target is not None
        else:
            reason = None if textbook is not None else self._why(call, args, kwargs)
            # Torch has no gradient of what is put where it is told.
            result = run(*args, **(without_out(kwargs) if told else kwargs))
        if told:
            result = put(target, result)
        written = tensors_in([result, target])
        if reason is None and read:
            reason = self._why_cut(result, written)
        # Slots of one storage share what they depend on: views follow what is written to their base.
        floating = [each for each in written if each.is_floating_point() or each.is_complex()]
        if read or reason == RANDOM:
            self.note(floating, True)
        whole = [each for each in written if not (each.is_floating_point() or each.is_complex())]
        if self._of_tokens(call, args, kwargs):
            self.note([each for each in whole if each.dtype != torch.bool], True)
        if stepped:
            self.note(whole, False)
        if not read and stepped:
            self.note(floating, False)
        report = None
        decides = stepped and call.function is Tensor.__bool__
        if (
            reason is not None
            and (read or decides or reason == RANDOM)
            and is_inside(call.where, self.islands)
        ):
            report = UncoveredReport(call.name, call.operation, call.source, reason)
        # A number that Python code gets, or a whole one, is used where nobody can see it.
        cut = report is not None and (not written or (reason == CUTS and not floating))
        self.calls.append((report, read, {_storage(each) for each in floating} | ({0} if cut else set())))
        return result

    def _of_tokens(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call rearranges integers that the model takes."""
        read = [each for each in tensors_in((args, kwargs)) if self.varies(each)]
        whole = not any(each.is_floating_point() or each.is_complex() for each in read)
        return bool(read) and whole and not is_discrete(call.function)

    def _why(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        if isinstance(call.function, nn.Module):
            covered = is_covered(call.function)
            return None if covered else why_no_rule_for_module(call.function)
        if call.function is Tensor.__bool__ and (self.varies(args) or self.is_discrete(args)):
            return f"{FIXED} decides what the code does"
        reason = why_no_rule_for_call(call.function, args, kwargs, self.varies, self.is_discrete)
        if reason is not None and _in_transform((args, kwargs)):
            return f"{reason}, in a transform of torch.func"
        return reason

    def _why_cut(self, result: Any, written: list[Tensor]) -> str | None:
        """Return why what a call makes of what varies has no gradient, None if it has one."""
        if not written:
            # Numbers that Python code gets.
            return CUTS if numbers_in(result) else None
        return None if torch.is_grad_enabled() else WITHOUT_GRADIENTS

    def _written_out(self, module: nn.Module, operands: tuple[Any, ...]) -> Any:
        """Run a textbook module, and look at each of its calls."""
        module.eval()
        for atom in module.modules():
            if isinstance(atom, Atom):
                set_forward(atom, partial(self._atom, atom, atom.forward))
        self._quiet = False
        try:
            with self:
                return module(*operands)
        finally:
            self._quiet = True

    def _atom(self, atom: Atom, plain: Callable[..., Any], *operands: Any) -> Any:
        return self.shown(atom, type(atom).__name__, plain, operands, {})

    def note(self, tensors: list[Tensor], varying: bool) -> None:
        """Remember that tensors vary with the input, or are masks or indices that do."""
        for each in tensors:
            # Kept, so that no other tensor gets the same address.
            self.kept.append(each)
            place = _storage(each)
            if varying or place not in self.kinds:
                self.kinds[place] = "varies" if varying else "discrete"

    def varies(self, value: Any) -> bool:
        """Whether a value is, or holds, a floating-point tensor that varies with the input."""
        return any(self.kinds.get(_storage(each)) == "varies" for each in tensors_in(value))

    def is_discrete(self, value: Any) -> bool:
        """Whether a value is, or holds, a mask or index that depends on the input."""
        return any(self.kinds.get(_storage(each)) == "discrete" for each in tensors_in(value))

    def found(self, result: Any) -> list[UncoveredReport]:
        """Return what no rule covers among the calls that the result depends on, each once."""
        needed = {0} | {_storage(each) for each in tensors_in(result)}
        reports: dict[UncoveredReport, None] = {}
        for report, read, written in reversed(self.calls):
            if written & needed:
                needed |= read
                if report is not None:
                    reports[report] = None
        return list(reversed(reports))


def _in_transform(value: Any) -> bool:
    """Whether a value holds tensors of a transform such as vmap, whose calls no explainer makes."""
    return any(map(is_functorch_wrapped_tensor, tensors_in(value)))


def _storage(tensor: Tensor) -> int:
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return id(tensor)
