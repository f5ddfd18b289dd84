"""Where the weights of a recurrence stand in a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from rewriter.onnx.graph import bodies_of, nodes_of


def add_bias(
    gates: str, bias: str, prefix: str, nodes: list[Any], weights: Collection[str], *, alone: bool
) -> str:
    """Add the hidden bias to the gates of all steps, if possible to the bias that they have already.

    Args:
        gates: the input's part of the gates.
        bias: the hidden bias.
        prefix: begins the names of new values.
        nodes: those before the first step; what is added goes among them.
        weights: names of the model's.
        alone: nothing else takes the gates.

    Returns:
        The name of the gates with the bias.

    """
    from onnx import helper

    place = next((k for k in reversed(range(len(nodes))) if gates in nodes[k].output), None)
    if alone and place is not None and nodes[place].op_type == "Add":
        made = nodes[place]
        own = [k for k, each in enumerate(made.input) if each in weights]
        if len(own) == 1:
            # A constant: runtimes compute it once.
            both = f"{prefix}.bias"
            nodes.insert(place, helper.make_node("Add", [made.input[own[0]], bias], [both], name=both))
            made.input[own[0]] = both
            return gates
    nodes.append(helper.make_node("Add", [gates, bias], [f"{prefix}.gates"], name=f"{prefix}.gates"))
    return f"{prefix}.gates"


def move_weights(graph: Any) -> None:
    """Put what only one Scan uses into its body, where a runtime prepares it once."""
    taken = Counter(name for node in graph.node for name in node.input)
    taken.update(each.name for each in graph.output)
    scans = [node for node in graph.node if node.op_type == "Scan"]
    bodies = {node.output[0]: next(bodies_of(node)) for node in scans}
    inner = {key: {name for node in nodes_of(body) for name in node.input} for key, body in bodies.items()}
    for names in inner.values():
        taken.update(names)
    tensors = {each.name: each for each in graph.initializer}
    for key, body in bodies.items():
        own = sorted(name for name in inner[key] if name in tensors and taken[name] == 1)
        body.initializer.extend(tensors.pop(name) for name in own)
    kept = [type(each).FromString(each.SerializeToString()) for each in tensors.values()]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)
