"""Cross entropy as an atom, with its rule: classes may be named or have probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from passes.leaves import Atom
from passes.operations.contract import Operands
from passes.operations.softmax.rule import log_means


class CrossEntropy(Atom):
    """Cross entropy of scores of classes.

    Args:
        ignore_index: the class that counts nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        label_smoothing: which part of a target is shared among all classes.

    Example:
        >>> CrossEntropy(reduction="none")(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])

    """

    def __init__(
        self, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss of ``input``, (N, C, *) or (C,), for the targets and weights of classes."""
        return F.cross_entropy(
            input,
            target,
            weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """Show the options."""
        options = f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}"
        return f"{options}, reduction={self.reduction}"

    def shares(self, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """Return by what logarithms of probabilities are multiplied, for (n, *shape of the operands)."""
        classes = dim_of_classes(input)
        if target.is_floating_point():
            found = target * (1 - self.label_smoothing)
        else:
            known = (target != self.ignore_index).unsqueeze(classes)
            place = target.unsqueeze(classes).where(known, 0)
            found = torch.zeros_like(input).scatter(classes, place, 1 - self.label_smoothing)
        found = found + self.label_smoothing / input.shape[classes]
        if weight is not None:
            found = found * _by_class(weight, input)
        return found if target.is_floating_point() else found * known

    def divisor(self, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """Return by what the mean divides, (n,)."""
        classes = dim_of_classes(input)
        if target.is_floating_point():
            count = input[0].numel() / input.shape[classes]
            return torch.full((len(input),), count, dtype=input.dtype, device=input.device)
        known = target != self.ignore_index
        if weight is None:
            return known.reshape(len(target), -1).sum(-1).to(input.dtype)
        rows = zip(weight.expand(len(target), -1), target.where(known, 0), known, strict=True)
        return torch.stack([(of_class[place] * kept).sum() for of_class, place, kept in rows])


def dim_of_classes(input: Tensor) -> int:
    """Return the dimension of classes behind that of pairs.

    Example:
        >>> dim_of_classes(torch.zeros(1, 5, 3)), dim_of_classes(torch.zeros(1, 3))
        (2, 1)

    """
    return 2 if input.dim() > 2 else 1


def _by_class(weight: Tensor, input: Tensor) -> Tensor:
    classes = dim_of_classes(input)
    shape = [1] * input.dim()
    shape[0], shape[classes] = weight.shape[0], weight.shape[1]
    return weight.reshape(shape)


def cross_entropy_pull(
    atom: CrossEntropy, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Take multipliers through ``- sum of q log p``: those of log_softmax, and of a product where q varies.

    Args:
        atom: the loss.
        x: scores, targets and perhaps weights of classes, of the samples.
        x0: of the references.
        y: not used.
        y0: not used.
        d: (K, n, *output shape).

    Example:
        >>> x, target = torch.zeros(1, 1, 2), torch.tensor([[0]])
        >>> d = torch.ones(1, 1, 1)
        >>> cross_entropy_pull(CrossEntropy(reduction="none"), (x, target), (x, target), d[0], d[0], d)[0]
        tensor([[[[-0.5000,  0.5000]]]])

    """
    (scores, target, *weights), (scores0, target0, *_) = x, x0
    count = d.shape[1]
    scores, scores0 = (each.expand(count, *each.shape[1:]) for each in (scores, scores0))
    target, target0 = (each.expand(count, *each.shape[1:]) for each in (target, target0))
    weight = weights[0] if weights else None
    classes = dim_of_classes(scores)
    if atom.reduction == "mean":
        d = d / atom.divisor(scores, target, weight)
    if atom.reduction != "none":
        d = d.reshape(*d.shape[:2], *(1,) * (scores.dim() - 2))
    d = d.unsqueeze(classes + 1) if atom.reduction == "none" else d.unsqueeze(-1)
    shares = (atom.shares(scores, target, weight) + atom.shares(scores0, target0, weight)) / 2
    _, of_class = log_means(scores, scores0, (classes,))
    through = -d * shares
    of_input = through - of_class * through.sum(classes + 1, keepdim=True)
    of_target = torch.zeros(len(d), *target.shape, dtype=d.dtype, device=d.device)
    if target.is_floating_point():
        of_target = -d * (F.log_softmax(scores, classes) + F.log_softmax(scores0, classes)) / 2
        of_target = of_target * (1 - atom.label_smoothing)
        if weight is not None:
            of_target = of_target * _by_class(weight, scores)
    of_weight = [d.new_zeros(*d.shape[:2], *each.shape[1:]) for each in weights]
    return (of_input, of_target, *of_weight)
