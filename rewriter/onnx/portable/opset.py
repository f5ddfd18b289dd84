"""The lowest version of the operator set that says what a graph says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from passes.errors import RewriteError
from rewriter.onnx.graph import bodies_of, nodes_of, operator_name, tidy

#: The first version that is written: since it ReduceSum, Squeeze and Unsqueeze take axes as an input.
FIRST = 13
#: The lowest version that torch writes.
TORCHS = 18
_STANDARD = ("", "ai.onnx")
# What an attribute says by default if versions without it did the same.
_NOTHING = (0, "none", b"none")

Constants = Mapping[str, Any]
Sizes = Mapping[str, list[int | None]]


class _TooLow(Exception):  # noqa: N818  # says which version it would take
    """A node that has no form in a version."""


def lowered(proto: Any, opset: int | None) -> Any:
    """Return a model at a lower version of the operator set, or at the lowest that has its operators.

    Args:
        proto: an ``onnx.ModelProto`` with the shapes of its values.
        opset: the version; None for the lowest.

    Raises:
        RewriteError: if an operator has no form in that version.

    """
    import onnx

    own = next(each.version for each in proto.opset_import if each.domain in _STANDARD)
    if opset is not None and opset >= own:
        return proto
    failure = ""
    for version in range(FIRST, own) if opset is None else [opset]:
        candidate = type(proto).FromString(proto.SerializeToString())
        try:
            for graph in _graphs(candidate.graph):
                _lower(graph, own, version, _constants(candidate.graph), _sizes(candidate.graph))
            for each in candidate.opset_import:
                if each.domain in _STANDARD:
                    each.version = version
            candidate.ir_version = onnx.helper.find_min_ir_version_for(
                candidate.opset_import, ignore_unknown=True
            )
            # Types of the operands, too.
            onnx.checker.check_model(candidate, full_check=True)
        except _TooLow as error:
            failure = str(error)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            failure = " ".join(str(error).split())
        else:
            # Without the axes that attributes say now.
            return tidy(candidate) if _unread(candidate.graph) else candidate
    if opset is None:
        return proto
    raise RewriteError(
        f"opset: the model has no form in version {opset}: {failure}; leave opset out to get the lowest"
    )


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in nodes_of(graph):
        yield from bodies_of(node)


def _unread(graph: Any) -> set[str]:
    """Return the small constants that no node reads."""
    read = {name for node in nodes_of(graph) for name in node.input}
    return _constants(graph).keys() - read - {each.name for each in graph.output}


def _constants(graph: Any) -> dict[str, Any]:
    """Return the small constants, by name; names are unique in a model."""
    from onnx import numpy_helper

    found = {}
    for each in _graphs(graph):
        for tensor in each.initializer:
            if len(tensor.dims) <= 1:
                found[tensor.name] = numpy_helper.to_array(tensor)
        for node in each.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if attribute.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
    return found


def _sizes(graph: Any) -> dict[str, list[int | None]]:
    """Return the shapes that are known, None for what may have any size."""
    found = {}
    for each in _graphs(graph):
        for value in (*each.input, *each.output, *each.value_info):
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                found[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        found |= {tensor.name: list(tensor.dims) for tensor in each.initializer}
    return found


def _lower(graph: Any, own: int, version: int, constants: Constants, sizes: Sizes) -> None:
    """Write the nodes of a graph, without those in it, in the words of a version."""
    nodes: list[Any] = []
    for node in graph.node:
        since = _schema(node, own).since_version if node.domain in _STANDARD else 0
        if since <= version:
            nodes.append(node)
            continue
        form = _FORMS.get(node.op_type)
        made = form(node, version, constants, sizes) if form else [node]
        for each in made:
            _fit(each, own, version)
        nodes += made
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)


def _schema(node: Any, version: int) -> Any:
    import onnx

    try:
        return onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        raise _TooLow(f"{operator_name(node)} ({_place(node)}) is newer") from None


def _fit(node: Any, own: int, version: int) -> None:
    """Drop attributes that say nothing; what else the version does not know is refused."""
    from onnx import helper

    old, new = _schema(node, version), _schema(node, own)
    given = {each.name: each for each in node.attribute}
    for name, attribute in new.attributes.items():
        if name in old.attributes:
            continue
        stated = given.get(name, attribute.default_value)
        if stated.name and helper.get_attribute_value(stated) not in _NOTHING:
            raise _TooLow(f"{operator_name(node)} ({_place(node)}) takes {name} since a later version")
        if name in given:
            node.attribute.remove(stated)
    if any(node.input[old.max_input :]):
        raise _TooLow(f"{operator_name(node)} ({_place(node)}) takes more inputs since a later version")


def _place(node: Any) -> str:
    return f"node {node.name or ', '.join(node.output)}"


def _split(node: Any, version: int, constants: Constants, sizes: Sizes) -> list[Any]:
    """Leave out how many parts there are where they are equal, else say their sizes."""
    from onnx import helper

    count = next((each for each in node.attribute if each.name == "num_outputs"), None)
    if count is None:
        return [node]
    axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
    known = [sizes[name][axis] if sizes.get(name) else None for name in node.output]
    parts = [each for each in known if each is not None]
    if len(parts) < len(known):
        raise _TooLow(f"Split ({_place(node)}) in parts of sizes that are not known")
    node.attribute.remove(count)
    if len(set(parts)) == 1:
        return [node]
    name = f"{node.output[0]}.sizes"
    value = helper.make_tensor(name, 7, [len(parts)], parts)
    node.input.append(name)
    return [helper.make_node("Constant", [], [name], value=value), node]


def _reduce(node: Any, version: int, constants: Constants, sizes: Sizes) -> list[Any]:
    """Say axes as an attribute."""
    from onnx import helper

    empty = next((each for each in node.attribute if each.name == "noop_with_empty_axes"), None)
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            raise _TooLow(f"{node.op_type} ({_place(node)}) along axes that are computed")
        axes = [int(each) for each in constants[node.input[1]].reshape(-1)]
        if axes:
            node.attribute.append(helper.make_attribute("axes", axes))
            if empty is not None:
                node.attribute.remove(empty)
        del node.input[1:]
    return [node]


def _shape(node: Any, version: int, constants: Constants, sizes: Sizes) -> list[Any]:
    """Take a part of the sizes from all of them."""
    from onnx import helper

    given = {each.name: each.i for each in node.attribute}
    rank = len(sizes[node.input[0]]) if node.input[0] in sizes else None
    begin, end = given.get("start", 0), given.get("end", rank)
    if end is None or (rank is None and (begin < 0 or end < 0)):
        raise _TooLow(f"Shape ({_place(node)}) of a value of any number of axes")
    taken = list(range(rank))[begin:end] if rank is not None else list(range(begin, end))
    del node.attribute[:]
    if taken == list(range(rank or -1)):
        return [node]
    output = node.output[0]
    node.output[0], name = f"{output}.all", f"{output}.axes"
    value = helper.make_tensor(name, 7, [len(taken)], taken)
    return [
        node,
        helper.make_node("Constant", [], [name], value=value),
        helper.make_node("Gather", [node.output[0], name], [output], axis=0),
    ]


_FORMS: Mapping[str, Callable[[Any, int, Constants, Sizes], list[Any]]] = {
    "Split": _split,
    "Shape": _shape,
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        _reduce,
    ),
    **dict.fromkeys(("ReduceProd", "ReduceSumSquare"), _reduce),
}
