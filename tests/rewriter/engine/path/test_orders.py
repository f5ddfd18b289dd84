"""Orders in which blocks are switched: balanced, drawn for each reference, the same whoever asks."""

from __future__ import annotations

import torch

from rewriter.engine.path.points import Path, between


def test_blocks_are_of_about_equal_size_and_independent() -> None:
    path = Path(blocks=4, seed=1, players=(torch.arange(10), torch.arange(10, 18).view(2, 4)))
    orders = path.orders(0, range(50))
    sizes = torch.stack([(orders == block).sum(1) for block in range(4)])
    assert sizes.unique().tolist() == [4, 5]
    # Of a part of the references, of another draw, of another seed.
    assert torch.equal(path.orders(0, [17, 3]), orders[[17, 3]])
    others = [path.orders(1, range(50)), Path(4, 1, 1, 2, path.players).orders(0, range(50))]
    assert len({each.numpy().tobytes() for order in (orders, *others) for each in order}) == 150
    # Each player is anywhere equally often: 150 draws of one of four, within four deviations.
    counts = torch.stack([(torch.cat([orders, *others]) == block).sum(0) for block in range(4)])
    assert int((counts - 37.5).abs().max()) < 4 * (150 * 3 / 16) ** 0.5


def test_a_path_goes_from_reference_to_sample_in_both_orders() -> None:
    path = Path(blocks=3, segments=2, players=(torch.arange(6).view(2, 3),))
    (weights,) = path.weights(range(7), path.orders(0, range(4)))
    assert weights.shape == (7, 2, 4, 2, 3)
    assert (weights[0] == 0).all()
    assert (weights[-1] == 1).all()
    # Each step moves one block by half, in reverse the one that is as far from the end.
    steps = weights.diff(dim=0)
    assert steps.unique().tolist() == [0, 0.5]
    assert torch.equal(steps[:, 0], steps[:, 1].flip(0))
    assert (steps.sum((-2, -1)) == 1).all()


def test_ends_are_exact_and_integers_are_of_one_of_both() -> None:
    sample, reference = torch.tensor([1e30, float("inf"), 0.1]), torch.tensor([1.0, 2.0, 0.3])
    for weight, expected in ((0.0, reference), (1.0, sample)):
        assert torch.equal(between(sample, reference, torch.full((3,), weight)), expected)
    tokens = between(torch.tensor([3, 4]), torch.tensor([7, 8]), torch.tensor([0.0, 1.0]))
    assert tokens.tolist() == [7, 4]
