"""The rule of interpolation: image and grid are two players, and so are then the coordinates of each place.

What is read is linear in the image: it gets the gradient, the mean of that at both grids. A place gets what
is read at both ends of it, the mean over both images, and shares that among its coordinates by the Shapley
values of the game whose players they are: the slope of each chord, averaged over where the others stand.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch
from torch import Tensor

from passes.operations.contract import Operands
from passes.operations.elementwise.chord import chord_multiplier
from passes.operations.sampling.atom import GridSample


def grid_pull(atom: GridSample, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    """Take multipliers, (K, n, *lead, C, *places), to image and grid.

    Args:
        atom: the interpolation.
        x: images, (n or 1, *lead, C, *space), and grids, (n or 1, *lead, *places, 2 or 3), of the samples.
        x0: of the references, likewise.
        y: not used.
        y0: not used.
        d: (K, n, *lead, C, *places).

    Example:
        >>> image, grid = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 1, 2)
        >>> y, d = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
        >>> grid_pull(GridSample(), (image, grid), (0 * image, grid), y, 0 * y, d)[0]
        tensor([[[[[0.2500, 0.2500],
                   [0.2500, 0.2500]]]]])

    """
    space = x[1].shape[-1]
    lead = d.shape[1 : -1 - space]
    # One side may be the same in all rows.
    images, grids = ([_wide(side[k], lead, space) for side in (x, x0)] for k in (0, 1))
    flat, flat_grids = ([each.flatten(0, len(lead) - 1) for each in sides] for sides in (images, grids))
    given = d.flatten(1, len(lead))
    of_image = torch.stack([_of_image(atom, flat[0], grid, given) for grid in flat_grids]).mean(0)
    of_grid = _of_grid(atom, flat, flat_grids, given)
    shapes = ((len(d), *d.shape[1:2], *side.shape[1:]) for side in x)
    found = (
        each.reshape(len(d), *wide.shape).sum_to_size(shape)
        for each, wide, shape in zip((of_image, of_grid), (images[0], grids[0]), shapes, strict=True)
    )
    return tuple(found)


def _wide(operand: Tensor, lead: tuple[int, ...], space: int) -> Tensor:
    own = operand.shape[-1 - space :]
    return operand.expand(*lead, *own)


def _of_image(atom: GridSample, image: Tensor, grid: Tensor, d: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = image.detach().clone().requires_grad_()
        read = atom(leaf, grid)
    return torch.stack([torch.autograd.grad(read, leaf, each, retain_graph=True)[0] for each in d])


def _of_grid(atom: GridSample, images: list[Tensor], grids: list[Tensor], d: Tensor) -> Tensor:
    channels, space = images[0].shape[1], grids[0].shape[-1]
    # Each channel by itself, so that all is a function of each coordinate.
    alone = [each.flatten(0, 1).unsqueeze(1) for each in images]
    ends = [each.repeat_interleave(channels, 0).unbind(-1) for each in grids]
    slopes = []
    for k in range(space):
        slope = torch.zeros_like(ends[0][k])
        others = [j for j in range(space) if j != k]
        for chosen in itertools.product((0, 1), repeat=space - 1):
            fixed = {j: ends[side][j] for j, side in zip(others, chosen, strict=True)}
            read = partial(_read, atom, alone, k, fixed)
            moves = [side[k].unsqueeze(0) for side in ends]
            (found,) = chord_multiplier(read, (moves[0],), (moves[1],), *(read(each) for each in moves))
            weight = math.factorial(sum(chosen)) * math.factorial(space - 1 - sum(chosen))
            slope = slope + found[0] * (weight / math.factorial(space))
        slopes.append(slope.reshape(images[0].shape[0], channels, *slope.shape[1:]))
    return torch.stack([(d * slope).sum(2) for slope in slopes], -1)


def _read(atom: GridSample, images: list[Tensor], k: int, fixed: dict[int, Tensor], moved: Tensor) -> Tensor:
    coordinates = [moved[0] if j == k else fixed[j] for j in range(len(fixed) + 1)]
    grid = torch.stack(coordinates, -1)
    read = torch.stack([atom(each, grid) for each in images]).mean(0)
    return read.squeeze(1).unsqueeze(0)
