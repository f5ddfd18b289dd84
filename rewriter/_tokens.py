"""Attributions to integers: at the output of the embedding that looks them up, per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter._linked import Pairing, Tape, current


@dataclass(frozen=True)
class Lookup:
    """One lookup by the samples, with its counterpart by the references.

    Args:
        name: of the embedding.
        index: what was looked up by the samples, (M, *).
        output: what was found, (M, *, features), a leaf of the samples' autograd graph.
        index0: what was looked up by the references.
        output0: what they found.

    """

    name: str
    index: Tensor
    output: Tensor
    index0: Tensor
    output0: Tensor

    def is_fixed(self) -> bool:
        """Whether samples and references look up the same, such as positions."""
        return self.index.shape == self.index0.shape and torch.equal(self.index, self.index0)

    def source(self, samples: Sequence[Tensor]) -> int:
        """Return which of the model's inputs is looked up.

        Raises:
            RewriteError: if it is none of them.

        """
        for k, each in enumerate(samples):
            if each.shape == self.index.shape and not each.is_floating_point() and each.equal(self.index):
                return k
        raise RewriteError(
            f"{self.name}: looks up integers of shape {tuple(self.index.shape)} that the model computes from "
            "its inputs, so that there is no input to place the attributions in; explain the output of the "
            "embedding, (model, embedding), or pass what is looked up as the model's input"
        )

    def pull(self, multipliers: Tensor, pairing: Pairing) -> Tensor:
        """Sum multipliers (K, n, *output shape) times differences over references and features."""
        delta = torch.sub(*pairing.pairs(self.output.detach(), self.output0))
        return (multipliers * delta).sum(-1).sum(1)


def link_embeddings(copy: nn.Module) -> None:
    """Make the embeddings of a linked copy leaves of the attribution."""
    for name, module in copy.named_modules():
        if type(module) is nn.Embedding:
            object.__setattr__(module, "forward", partial(_forward, module.forward, name))


def holds_embedding(model: nn.Module) -> bool:
    """Whether a model looks integers up."""
    return any(type(module) is nn.Embedding for module in model.modules())


def _forward(plain: Any, name: str, index: Tensor) -> Tensor:
    tape: Tape | None = current()
    found: Tensor = plain(index)
    if tape is None or not tape.tokens:
        return found
    if tape.pairing is None:
        tape.indices.append(index.clone())
        tape.add(name, ((index.clone(),), found))
        return found
    (index0,), output0 = tape.next(name)
    lookup = Lookup(name, index.clone(), found.detach().requires_grad_(), index0, output0)
    if lookup.is_fixed():
        return found
    tape.lookups.append(lookup)
    return lookup.output.clone()
