"""Give the output of an embedding a module of its own."""

from __future__ import annotations

from typing import cast

from torch import Tensor, fx, nn

from passes.graph.names import free_name
from passes.leaves import Layout
from passes.pipeline import Pass, PassResult


class EmbeddingOutput(Layout):
    """Hand on what an embedding found, so that explainers of a module's input can name it.

    Example:
        >>> import torch
        >>> EmbeddingOutput()(torch.ones(1))
        tensor([1.])

    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input``."""
        return input


class MarkEmbeddings(Pass):
    """In a graph, put an :class:`EmbeddingOutput` behind each call of an ``nn.Embedding``.

    It is named after the embedding: ``words`` has ``words_output`` behind it.
    """

    def run(self, model: nn.Module) -> PassResult:
        """Insert the modules."""
        if not isinstance(model, fx.GraphModule):
            return PassResult(model, modified=False)
        modified = False
        for node in list(model.graph.nodes):
            module = model.get_submodule(node.target) if node.op == "call_module" else None
            if type(module) is not nn.Embedding:
                continue
            path = _path(model, cast("str", node.target))
            model.add_submodule(path, EmbeddingOutput().train(module.training))
            with model.graph.inserting_after(node):
                marked = model.graph.create_node("call_module", path, name=path.replace(".", "_"))
            node.replace_all_uses_with(marked)
            marked.args = (node,)
            modified = True
        return PassResult(model, modified)


def _path(model: nn.Module, target: str) -> str:
    parent, _, own = target.rpartition(".")
    name = free_name(model.get_submodule(parent), f"{own}_output")
    return f"{parent}.{name}" if parent else name
