"""What each kind of atom gives its operands, restated, by the type of the atom."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from passes import leaves
from passes.operations.elementwise.atom import RandomLeakyReLU
from passes.operations.losses.cross_entropy import CrossEntropy
from passes.operations.matrices.atoms import Cholesky, Inverse, MatrixFunction, Solve
from passes.operations.maxima.extrema import Extremum, RunningExtremum
from passes.operations.maxima.pooling import AdaptiveMaxPool, MaxPool
from passes.operations.norms.standardize import Standardize
from passes.operations.norms.variance import Variance
from passes.operations.norms.vector_norms import Normalize, VectorNorm
from passes.operations.order_statistics.atom import OrderStatistics
from passes.operations.products.bilinear import Bilinear
from passes.operations.products.running_products import RunningProduct
from passes.operations.sampling.atom import GridSample
from passes.operations.softmax.atoms import LogSoftmaxAtom, LogSumExp, RunningLogSumExp, SoftmaxAtom
from tests.support.oracles import matrices
from tests.support.oracles.grids import of_grid
from tests.support.oracles.rows import (
    restated_norm,
    restated_normalize,
    restated_softmax,
    restated_standardize,
    restated_variance,
)
from tests.support.oracles.shapley import shapley_of_orders

Row = list[float]
#: For each output, what each number of the operands gives to it.
Shares = list[Row]


@dataclass(frozen=True)
class Oracle:
    """The restated rule of an atom.

    Args:
        atom: with its options.
        shapes: of its operands, without a batch.
        shares: of all numbers of the operands, which it takes in one row, at sample and reference.
        domain: brings any numbers to where the atom is defined.

    """

    atom: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    shares: Callable[[Row, Row], Shares]
    domain: Callable[[Tensor], Tensor] = lambda row: row


def of_each(function: Callable[[float], float]) -> Callable[[Row, Row], Shares]:
    """Give each number the difference that it makes to its own output."""

    def shares(x: Row, x0: Row) -> Shares:
        return [[(function(x[i]) - function(x0[i])) * (i == j) for i in range(len(x))] for j in range(len(x))]

    return shares


def by_slopes(slopes: Callable[[Row, Row], Shares]) -> Callable[[Row, Row], Shares]:
    """Multiply what is stated as d output / d input by the differences."""

    def shares(x: Row, x0: Row) -> Shares:
        return [[m * (a - b) for m, a, b in zip(row, x, x0, strict=True)] for row in slopes(x, x0)]

    return shares


def fractions(row: Row) -> list[Fraction]:
    return [Fraction(each) for each in row]


def of_windows(*windows: tuple[int, ...]) -> Callable[[Row, Row], Shares]:
    """Share the maximum of each window by Shapley values."""

    def shares(x: Row, x0: Row) -> Shares:
        found = []
        for window in windows:
            own = shapley_of_orders(max, *([side[i] for i in window] for side in (x, x0)))
            found.append([own[window.index(i)] if i in window else 0.0 for i in range(len(x))])
        return found

    return shares


def of_smallest(x: Row, x0: Row) -> Shares:
    return [shapley_of_orders(min, x, x0)]


def of_two_players(
    function: Callable[[Tensor, Tensor], Tensor], split: int, first: tuple[int, ...], second: tuple[int, ...]
) -> Callable[[Row, Row], Shares]:
    """Let each of two operands be a sum of its numbers, over which a product shares what it gives."""

    def shares(x: Row, x0: Row) -> Shares:
        a, b, a0, b0 = (
            torch.tensor(part, dtype=torch.float64) for part in (x[:split], x[split:], x0[:split], x0[split:])
        )
        rows = []
        for place, (now, before) in enumerate(zip(x, x0, strict=True)):
            # Only this number moves, while the other operand stands at either end.
            change = torch.zeros(len(x), dtype=torch.float64)
            change[place] = now - before
            moved, other = (change[:split], change[split:]), ((b, b0) if place < split else (a, a0))
            both = [
                function(moved[0].view(first), end.view(second))
                if place < split
                else function(end.view(first), moved[1].view(second))
                for end in other
            ]
            rows.append(((both[0] + both[1]) / 2).flatten())
        table: Shares = torch.stack(rows, -1).tolist()
        return table

    return shares


def of_running_product(x: Row, x0: Row) -> Shares:
    """Split ``p_k = p_(k-1) x_k`` between two players, and the former between those before it."""
    table: Shares = []
    given, product, product0 = [0.0] * len(x), 1.0, 1.0
    for k, (a, a0) in enumerate(zip(x, x0, strict=True)):
        earlier, own = shapley_of_orders(math.prod, [product, a], [product0, a0])
        change = product - product0
        given = [each * earlier / change if change else 0.0 for each in given]
        given[k] = own
        product, product0 = product * a, product0 * a0
        table.append(list(given))
    return table


def of_places(*places: dict[int, float]) -> Callable[[Row, Row], Shares]:
    """Share sorted elements, of which each result is made, by Shapley values; the largest has place 0."""

    def shares(x: Row, x0: Row) -> Shares:
        def result(row: Row, made_of: dict[int, float]) -> float:
            ordered = sorted(row, reverse=True)
            return sum(share * ordered[place] for place, share in made_of.items())

        return [shapley_of_orders(lambda row, each=each: result(row, each), x, x0) for each in places]  # type: ignore[misc]

    return shares


def of_prefixes(x: Row, x0: Row) -> Shares:
    """Multiply restated slopes of the logsumexp of all numbers up to each."""
    found = []
    for count in range(1, len(x) + 1):
        (slopes,) = restated_softmax(LogSumExp, x[:count], x0[:count])
        found.append([m * (a - b) for m, a, b in zip(slopes, x, x0, strict=False)] + [0.0] * (len(x) - count))
    return found


def of_cross_entropy(x: Row, x0: Row) -> Shares:
    """Share ``- sum of q log p`` between scores and targets: each change meets the mean of the other."""
    half = len(x) // 2
    slopes = restated_softmax(LogSoftmaxAtom, x[:half], x0[:half])
    q, q0 = x[half:], x0[half:]
    logs, logs0 = ([v - math.log(sum(map(math.exp, row[:half]))) for v in row[:half]] for row in (x, x0))
    scores = [
        sum(-(q[j] + q0[j]) / 2 * slopes[j][i] for j in range(half)) * (x[i] - x0[i]) for i in range(half)
    ]
    return [scores + [-(logs[j] + logs0[j]) / 2 * (q[j] - q0[j]) for j in range(half)]]


MAX_POOL = of_windows((0, 1, 2), (2, 3, 4), (4, 5, 6))
#: Of all types that have a rule, but those of which each function has an oracle by its name.
ATOMS: dict[type[nn.Module], list[Oracle]] = {
    leaves.SigmoidAtom: [
        Oracle(leaves.SigmoidAtom, ((5,),), of_each(lambda v: 1 / (1 + math.exp(-v)))),
    ],
    leaves.TanhAtom: [Oracle(leaves.TanhAtom, ((5,),), of_each(math.tanh))],
    leaves.ReLUAtom: [Oracle(leaves.ReLUAtom, ((5,),), of_each(lambda v: max(v, 0.0)))],
    RandomLeakyReLU: [
        Oracle(lambda: RandomLeakyReLU(0.25, 0.75).eval(), ((5,),), of_each(lambda v: max(v, 0.5 * v))),
    ],
    leaves.Mul: [
        Oracle(leaves.Mul, ((4,), (4,)), of_two_players(torch.mul, 4, (4,), (4,))),
        Oracle(leaves.Mul, ((2, 1), (1, 3)), of_two_players(torch.mul, 2, (2, 1), (1, 3))),
    ],
    Bilinear: [
        Oracle(lambda: Bilinear("matmul"), ((2, 3), (3, 2)), of_two_players(torch.matmul, 6, (2, 3), (3, 2))),
        Oracle(lambda: Bilinear("kron"), ((2, 2), (1, 3)), of_two_players(torch.kron, 4, (2, 2), (1, 3))),
    ],
    RunningProduct: [
        Oracle(lambda: RunningProduct(-1, cumulative=True), ((4,),), of_running_product),
        Oracle(lambda: RunningProduct(-1), ((4,),), lambda x, x0: of_running_product(x, x0)[-1:]),
    ],
    SoftmaxAtom: [
        Oracle(
            lambda: SoftmaxAtom(-1), ((5,),), by_slopes(lambda x, x0: restated_softmax(SoftmaxAtom, x, x0))
        )
    ],
    LogSoftmaxAtom: [
        Oracle(
            lambda: LogSoftmaxAtom(-1),
            ((5,),),
            by_slopes(lambda x, x0: restated_softmax(LogSoftmaxAtom, x, x0)),
        )
    ],
    LogSumExp: [
        Oracle(lambda: LogSumExp((-1,)), ((5,),), by_slopes(lambda x, x0: restated_softmax(LogSumExp, x, x0)))
    ],
    Standardize: [
        Oracle(
            lambda centred=centred: Standardize(-1, 0.1, centred),  # type: ignore[misc]
            ((5,),),
            by_slopes(lambda x, x0, centred=centred: restated_standardize(x, x0, 0.1, centred)),  # type: ignore[misc]
        )
        for centred in (True, False)
    ],
    Variance: [
        Oracle(
            lambda take_root=take_root: Variance((-1,), 1, root=take_root),  # type: ignore[misc]
            ((5,),),
            by_slopes(
                lambda x, x0, take_root=take_root: [  # type: ignore[misc]
                    restated_variance(fractions(x), fractions(x0), 1, take_root)[0]
                ]
            ),
        )
        for take_root in (True, False)
    ],
    VectorNorm: [
        Oracle(
            lambda order=order: VectorNorm(order, (-1,)),  # type: ignore[misc]
            ((5,),),
            by_slopes(
                lambda x, x0, order=order: [  # type: ignore[misc]
                    [float(each) for each in restated_norm(order, fractions(x), fractions(x0))]
                ]
            ),
        )
        for order in (1, 2)
    ],
    Normalize: [
        Oracle(
            lambda order=order: Normalize(order, (-1,), 0.1),  # type: ignore[misc]
            ((4,),),
            by_slopes(
                lambda x, x0, order=order: restated_normalize(order, fractions(x), fractions(x0), 0.1)  # type: ignore[misc]
            ),
        )
        for order in (1, 2)
    ],
    Extremum: [
        Oracle(lambda: Extremum("amax", -1), ((5,),), of_windows((0, 1, 2, 3, 4))),
        Oracle(lambda: Extremum("min", -1), ((5,),), of_smallest),
    ],
    RunningExtremum: [
        Oracle(
            lambda: RunningExtremum("cummax", -1),
            ((4,),),
            of_windows(*(tuple(range(k + 1)) for k in range(4))),
        ),
    ],
    RunningLogSumExp: [Oracle(lambda: RunningLogSumExp(-1), ((4,),), of_prefixes)],
    OrderStatistics: [
        Oracle(
            lambda: OrderStatistics("sort", -1, descending=True),
            ((5,),),
            of_places(*({k: 1.0} for k in range(5))),
        ),
        Oracle(
            lambda: OrderStatistics("topk", -1, k=2, largest=False), ((5,),), of_places({4: 1.0}, {3: 1.0})
        ),
        Oracle(lambda: OrderStatistics("median", -1), ((4,),), of_places({2: 1.0})),
        Oracle(lambda: OrderStatistics("kthvalue", -1, k=4), ((5,),), of_places({1: 1.0})),
        Oracle(lambda: OrderStatistics("quantile", -1, q=0.6), ((5,),), of_places({2: 0.6, 1: 0.4})),
    ],
    CrossEntropy: [Oracle(lambda: CrossEntropy(reduction="none"), ((3,), (3,)), of_cross_entropy)],
    Inverse: [Oracle(Inverse, ((2, 2),), matrices.of_inverse, matrices.apart)],
    Solve: [Oracle(Solve, ((2, 2), (2,)), matrices.of_solution, matrices.apart)],
    Cholesky: [Oracle(Cholesky, ((2, 2),), matrices.of_factor, matrices.positive)],
    MatrixFunction: [
        Oracle(lambda: MatrixFunction("linalg.det"), ((2, 2),), matrices.of_determinant),
        Oracle(
            lambda: MatrixFunction("linalg.matrix_exp"), ((2, 2),), matrices.of_exponential, matrices.diagonal
        ),
    ],
    GridSample: [Oracle(GridSample, ((1, 2, 2), (1, 1, 2)), of_grid, torch.tanh)],
    MaxPool: [Oracle(lambda: MaxPool(1, 3, 2), ((1, 7),), MAX_POOL)],
    AdaptiveMaxPool: [Oracle(lambda: AdaptiveMaxPool(1, 2), ((1, 5),), of_windows((0, 1, 2), (2, 3, 4)))],
}
