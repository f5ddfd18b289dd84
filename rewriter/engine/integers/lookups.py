"""Attributions to integers: at the output of the embedding that looks them up, per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.user_code.hooks import set_forward
from rewriter.engine.tape import Pairing, current


@dataclass(frozen=True)
class Lookup:
    """One lookup by the samples, with its counterpart by the references.

    Args:
        name: of the embedding.
        index: what was looked up by the samples, (M, *).
        output: what was found, (M, *, features), a leaf of the samples' autograd graph.
        index0: what was looked up by the references.
        output0: what they found.
        origins: which elements of the model's inputs were looked up by the samples, (M, *).
        outer: what is merged with the batch outside of it, in what was found.

    """

    name: str
    index: Tensor
    output: Tensor
    index0: Tensor
    output0: Tensor
    origins: Tensor
    outer: int = 1

    def is_fixed(self) -> bool:
        """Whether samples and references look up the same, such as positions."""
        return self.index.shape == self.index0.shape and torch.equal(self.index, self.index0)

    def pull(self, multipliers: Tensor, pairing: Pairing) -> Tensor:
        """Sum multipliers (K, n, *output shape) times differences over references and features."""
        delta = torch.sub(*pairing.pairs(self.output.detach(), self.output0, self.outer))
        return (multipliers * delta).sum(-1).sum(1)

    def place(self, attributions: Tensor, sums: Sequence[Tensor]) -> None:
        """Add what was pulled, (K, *index shape), to the attributions of the inputs that hold integers.

        Args:
            attributions: of what was looked up.
            sums: of the inputs, (K, *input shape) each.

        Raises:
            RewriteError: if something that is no element of an input was looked up, and it differs between
                samples and references.

        """
        values = attributions.flatten(1).double()
        origins = self.origins.flatten().to(values.device)
        if bool((values != 0).any(0)[origins < 0].any()):
            raise RewriteError(
                f"{self.name}: looks up integers of shape {tuple(self.index.shape)} that the model computes "
                "from its inputs, so that there is no input to place the attributions in; explain the output "
                "of the embedding, (model, embedding), or pass what is looked up as the model's input"
            )
        begin = 0
        for each in sums:
            count = each[0].numel()
            here = (origins >= begin) & (origins < begin + count)
            each.view(len(each), -1).index_add_(1, origins[here] - begin, values[:, here])
            begin += count

    def by_row(self, attributions: Tensor, pairing: Pairing) -> Tensor:
        """Sum what was pulled, (K, *index shape), to one number for each row, (K, M)."""
        sizes = enumerate(zip(self.index.shape, self.index0.shape, strict=True))
        # Where each sample has one reference, there is the same number of both.
        batch = [d for d, (a, b) in sizes if a != b or (pairing.aligned and a == pairing.samples)]
        first = attributions.movedim(1 + batch[0], 1) if batch else attributions
        return torch.unflatten(first.flatten(1), 1, (pairing.samples, -1)).sum(2)


def link_embeddings(copy: nn.Module) -> None:
    """Make the embeddings of a linked copy leaves of the attribution."""
    for name, module in copy.named_modules():
        if type(module) is nn.Embedding:
            plain = module.forward if module.max_norm is None else partial(_renormed, module)
            set_forward(module, partial(_forward, plain, name))


def holds_embedding(model: nn.Module) -> bool:
    """Whether a model looks integers up."""
    return any(type(module) is nn.Embedding for module in model.modules())


def _renormed(module: nn.Embedding, index: Tensor) -> Tensor:
    """Look up what torch would after it has written rows within ``max_norm`` into the weights."""
    found = nn.functional.embedding(index, module.weight)
    norm = torch.linalg.vector_norm(found, module.norm_type, -1, keepdim=True)
    return torch.where(norm > module.max_norm, found * (module.max_norm / (norm + 1e-7)), found)


def _marked(found: Tensor, mark: float, shape: torch.Size, other: torch.Size) -> Tensor:
    """Mark the second row of what was looked up; ``other`` is the index's shape in a run of more rows."""
    differing = [d for d, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
    if len(differing) != 1 or shape[differing[0]] != 2:
        return found
    found = found.clone()
    found.select(differing[0], 1).add_(mark)
    return found


def _forward(plain: Any, name: str, input: Tensor) -> Tensor:
    index, tape = input, current()
    found: Tensor = plain(index)
    if tape is None or not tape.tokens:
        return found
    if tape.linking is not None:
        linked: Tensor = tape.linking.lookup(name, index, found)
        return linked
    if tape.pairing is None:
        tape.indices.append(index.clone())
        if tape.marked is not None:
            found = _marked(found, tape.mark, index.shape, tape.marked[len(tape.indices) - 1])
        tape.add(name, ((index.clone(),), found))
        return found
    (index0,), output0 = tape.next(name, ((index,), found))
    assert tape.origins is not None
    leaf, origins = found.detach().requires_grad_(), tape.origins(index)
    lookup = Lookup(name, index.clone(), leaf, index0, output0, origins, tape.outer(1))
    if lookup.is_fixed():
        return found
    tape.lookups.append(lookup)
    return lookup.output.clone()
