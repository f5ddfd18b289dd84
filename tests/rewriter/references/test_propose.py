"""What is proposed is what the words say: restated in loops over numbers, and by brute force."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError, propose_references
from rewriter.references.medoids import MOST, distances_to, medoids, scales_of

DOUBLE = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def cost(distances: Tensor, chosen: Any) -> float:
    return sum(min(float(distances[i, j]) for i in chosen) for j in range(len(distances)))


def between(data: Tensor) -> Tensor:
    return torch.cdist(data.flatten(1), data.flatten(1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 4])
def test_no_exchange_makes_medoids_better(count: int, seed: int) -> None:
    distances = between(drawn(12, 3, seed=seed))
    found = medoids(distances, count).tolist()
    assert len(set(found)) == count
    best = min(cost(distances, each) for each in itertools.combinations(range(12), count))
    for kept, other in itertools.product(itertools.combinations(found, count - 1), range(12)):
        # Sums of twelve float64 numbers of size one.
        assert cost(distances, {*kept, other}) >= cost(distances, found) - 1e-13
    assert cost(distances, found) <= 1.1 * best


def test_an_exchange_mends_what_greed_has_chosen() -> None:
    """The first of two medoids, best by itself, lies between two groups, and is none of the best two."""
    at = torch.tensor([0.0, 1.0, 2.0, 6.1, 10.0, 11.0, 12.0])
    distances = (at[:, None] - at).abs()
    assert int(distances.sum(1).argmin()) == 3
    found = medoids(distances, 2).tolist()
    assert 3 not in found
    best = min(cost(distances, each) for each in itertools.combinations(range(7), 2))
    # In float32, sums of seven numbers up to 12.
    assert abs(cost(distances, found) - best) < 1e-5


def test_the_medoid_that_stands_for_most_comes_first() -> None:
    at = torch.tensor([0.0, 1.0, 20.0, 21.0, 22.0, 23.0, 24.0])
    assert medoids((at[:, None] - at).abs(), 2).tolist()[0] == 4


def test_as_many_medoids_as_rows_are_all_rows_also_of_equal_ones() -> None:
    assert sorted(medoids(torch.zeros(4, 4), 4).tolist()) == [0, 1, 2, 3]


def test_distances_are_of_numbers_in_deviations_and_of_integers_that_differ() -> None:
    numbers = drawn(6, 3, 2) * torch.tensor([1.0, 100.0])
    numbers[..., 1] += 1000
    tokens = torch.randint(0, 3, (6, 4), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    deviation = [math.sqrt(float(numbers[..., f].flatten().var(correction=0))) for f in range(2)]
    got = distances_to(
        [numbers[0], tokens[0]], [numbers, tokens], scales_of([numbers, tokens]), [mask, torch.ones(4)]
    )
    for n in range(6):
        total: float = sum(int(tokens[0, t] != tokens[n, t]) for t in range(4))
        for t, f in itertools.product(range(3), range(2)):
            if mask[t, f]:
                total += ((numbers[0, t, f] - numbers[n, t, f]).item() / deviation[f]) ** 2
        assert abs(float(got[n]) - math.sqrt(total)) < 1e-12


def test_a_constant_feature_is_at_no_infinite_distance() -> None:
    data = torch.tensor([[[5.0]], [[5.0]]])
    assert distances_to([torch.tensor([[7.0]])], [data], scales_of([data])).tolist() == [2.0, 2.0]


def test_medoids_are_rows_of_the_data_and_a_background() -> None:
    data = drawn(30, 4, 2)
    proposed = propose_references(data, 5)
    rows = proposed["medoids"].background
    assert all(any(torch.equal(row, each) for each in data) for row in rows)
    assert torch.equal(proposed["medoids"](data[:3]), rows.expand(3, 5, 4, 2))
    scaled = data / data.flatten(0, 1).std(0, correction=0)
    distances = between(scaled)
    found = [next(n for n, each in enumerate(data) if torch.equal(each, row)) for row in rows]
    swapped = [
        cost(distances, {*kept, other})
        for kept, other in itertools.product(itertools.combinations(found, 4), range(30))
    ]
    assert min(swapped) >= cost(distances, found) - 1e-12


MASKS = {
    "nothing": None,
    "a channel": [False, True],
    "steps": torch.tensor([True, False, False, True, False])[:, None],
    "some of each": torch.arange(10).view(5, 2) % 3 == 0,
    "everything": True,
}


@pytest.mark.parametrize("held", MASKS.values(), ids=MASKS)
def test_permuted_keep_the_numbers_of_each_channel_and_what_is_held(held: Any) -> None:
    x = drawn(4, 5, 2)
    made = propose_references(drawn(9, 5, 2, seed=1), 6, held=held)["permuted"](x)
    mask = torch.zeros(5, 2, dtype=torch.bool) if held is None else torch.as_tensor(held).expand(5, 2)
    for m, n, f in itertools.product(range(4), range(6), range(2)):
        assert Counter(made[m, n, :, f].tolist()) == Counter(x[m, :, f].tolist())
        assert torch.equal(made[m, n, mask[:, f], f], x[m, mask[:, f], f])
    if not mask.any():
        # Steps move as a whole.
        assert all(
            Counter(map(tuple, made[m, n].tolist())) == Counter(map(tuple, x[m].tolist()))
            for m, n in itertools.product(range(4), range(6))
        )
    free = int((~mask).sum(0).max())
    orders = {tuple(made[0, n].flatten().tolist()) for n in range(6)}
    assert len(orders) > 1 if free > 1 else len(orders) == 1


def test_all_orders_are_drawn_alike() -> None:
    """Of three steps six orders, five but the sample's own: each a fifth of 300, within five deviations."""
    x = torch.tensor([[[0.0], [1.0], [2.0]]])
    made = propose_references(x.repeat(300, 1, 1), 300)["permuted"](x)
    counts = Counter(map(tuple, made[0, :, :, 0].tolist()))
    assert len(counts) == 5
    allowed = 5 * math.sqrt(300 * (1 / 5) * (4 / 5))
    assert all(abs(each - 300 / 5) < allowed for each in counts.values())


def test_the_orders_of_a_sample_are_the_same_in_any_batch() -> None:
    x = drawn(7, 5, 2)
    for make in propose_references(x, 3, held=[True, False], seed=3).values():
        assert torch.equal(make(x)[4:5], make(x[4:5]))
    again = propose_references(x, 3, seed=3)["permuted"](x)
    assert torch.equal(propose_references(x, 3, seed=3)["permuted"](x), again)
    assert not torch.equal(propose_references(x, 3, seed=4)["permuted"](x), again)


def test_time_may_be_another_dimension_and_another_for_each_input() -> None:
    signal, static, marks = drawn(8, 2, 5), drawn(8, 3), torch.randint(0, 9, (8, 5))
    make = propose_references([signal, static, marks], 4, time=[-1, None, 0])["permuted"]
    x, s, k = make([signal, static, marks])
    assert torch.equal(s, static[:, None].expand(8, 4, 3))
    for m, n in itertools.product(range(8), range(4)):
        together = [(*x[m, n, :, t].tolist(), int(k[m, n, t])) for t in range(5)]
        as_were = [(*signal[m, :, t].tolist(), int(marks[m, t])) for t in range(5)]
        assert Counter(together) == Counter(as_were)
    # One number: inputs of the length of the first have time there, others have none.
    x, s, k = propose_references([signal.mT, static, marks], 4)["permuted"]([signal.mT, static, marks])
    assert torch.equal(s, static[:, None].expand(8, 4, 3))
    assert not torch.equal(k, marks[:, None].expand(8, 4, 5))


def test_padding_is_held_by_a_function_of_the_samples() -> None:
    lengths = torch.tensor([2, 4, 5])
    padded = torch.arange(5) >= lengths[:, None]
    x = drawn(3, 5, 2).masked_fill(padded[..., None], 0.0)
    data = drawn(20, 5, 2, seed=1)

    def held(samples: Tensor) -> Tensor:
        found = (samples == 0).all(2, keepdim=True)
        samples.zero_()
        return found

    for name, make in propose_references(data, 6, held=held).items():
        made = make(x)
        assert (made[padded[:, None].expand(3, 6, 5)] == 0).all(), name
        assert (made[~padded[:, None].expand(3, 6, 5)] != 0).all(), name
    assert (x != 0).any()


def test_conditional_are_the_nearest_rows_in_what_is_held() -> None:
    data, x = drawn(25, 4, 3), drawn(3, 4, 3, seed=1)
    mask = torch.arange(12).view(4, 3) % 2 == 0
    made = propose_references(data, 5, held=mask)["conditional"](x)
    deviation = data.flatten(0, 1).std(0, correction=0)
    for m in range(3):
        far = [float((((each - x[m]) / deviation)[mask] ** 2).sum()) for each in data]
        nearest = sorted(range(25), key=far.__getitem__)[:5]
        for n, row in enumerate(nearest):
            assert torch.equal(made[m, n], torch.where(mask, x[m], data[row]))


def test_conditional_on_marks_are_drawn_among_rows_with_the_same_ones_but_not_the_sample() -> None:
    values = drawn(60, 3)
    marks = torch.arange(60) % 3
    data = torch.stack([values, torch.eye(3, dtype=DOUBLE)[marks]], 2)
    seen = set()
    for seed in range(5):
        made = propose_references(data, 4, held=[False, True], seed=seed)["conditional"](data[:3])
        for m in range(3):
            assert torch.equal(made[m, :, :, 1], data[m, :, 1].expand(4, 3))
            rows = [int((values == each).all(1).nonzero()) for each in made[m, :, :, 0]]
            assert m not in rows
            assert {row % 3 for row in rows} == {m}
            seen |= set(rows)
    # Another seed draws others: 60 times four of twenty.
    assert len(seen) > 3 * 4


def test_what_is_held_gets_no_value_and_the_rest_adds_up() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    model, data, x = Last().double(), drawn(20, 5, 2), drawn(3, 5, 2, seed=1)
    explainer = DeepExplainer(model, data)
    for make in propose_references(data, 4, held=[False, True]).values():
        values = torch.from_numpy(explainer.shap_values(x, references=make))[..., 0]
        assert (values[..., 1] == 0).all()
        with torch.no_grad():
            change = model(x)[:, 0] - model(make(x).flatten(0, 1)).view(3, 4).mean(1)
        assert (values.sum((1, 2)) - change).abs().max() < 1e-12


def test_more_rows_than_are_looked_at() -> None:
    data = torch.arange(MOST + 50.0).view(-1, 1, 1)
    rows = propose_references(data, 2)["medoids"].background
    assert len(set(rows.flatten().tolist())) == 2
    with pytest.raises(RewriteError, match=f"count: expected at most as many as rows of data, {MOST}"):
        propose_references(data, MOST + 1)


def test_the_data_are_a_copy() -> None:
    data = drawn(6, 3, 2)
    proposed = propose_references(data, 2, held=[True, False])
    before = {name: make(data[:2].clone()) for name, make in proposed.items()}
    x = data[:2].clone()
    data.zero_()
    assert all(torch.equal(make(x), before[name]) for name, make in proposed.items())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no references": ({"count": 0}, "count: expected an integer, 1 or more, got 0"),
    "more than rows": ({"count": 7}, "count: expected at most as many as rows of data, 6, got 7"),
    "a seed below zero": ({"seed": -1}, "seed: expected an integer, 0 or more, got -1"),
    "numbers for a mask": ({"held": [0, 1]}, "held, input 0: expected booleans, .* got torch.int64"),
    "a mask of another shape": (
        {"held": [True] * 5},
        r"held, input 0: expected a mask that broadcasts to the shape \(4, 2\) of a row, got \(5,\)",
    ),
    "a mask for each row": ({"held": torch.ones(6, 4, 2) > 0}, r"broadcasts to the shape \(4, 2\) of a row"),
    "no dimension": ({"time": 2}, r"time, input 0: expected a dimension of rows of shape \(4, 2\), got 2"),
    "a name of one": ({"time": "t"}, "time, input 0: expected a dimension of a row or None, got 't'"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RewriteError, match=message):
        propose_references(drawn(6, 4, 2), **({"count": 2} | options))


def test_refused_of_several_inputs_and_of_samples() -> None:
    data = [drawn(6, 4, 2), drawn(6, 3)]
    with pytest.raises(RewriteError, match="held: expected a list of 2, a mask or None per input, got 1"):
        propose_references(data, 2, held=[None])
    with pytest.raises(RewriteError, match=r"time: expected a list of 2, .* per input, got 3"):
        propose_references(data, 2, time=[0, 0, 0])
    with pytest.raises(RewriteError, match=r"time: expected inputs of one length, got \[3, 4\]"):
        propose_references(data, 2, time=[0, 0])
    with pytest.raises(RewriteError, match="data: expected at least one input"):
        propose_references([])
    make = propose_references(data[0], 2, held=lambda x: x[:, :, 0] > 0)["medoids"]
    with pytest.raises(RewriteError, match=r"held, input 0: .* \(6, 4, 2\) of the samples, got \(6, 4\)"):
        make(data[0])
    with pytest.raises(RewriteError, match=r"samples, input 0: expected rows of shape \(4, 2\)"):
        make(drawn(6, 5, 2))


def test_an_input_that_is_held_altogether_is_the_samples() -> None:
    data = [drawn(9, 5, 2), torch.randint(1, 6, (9,), generator=torch.Generator().manual_seed(1))]
    with pytest.raises(
        RewriteError, match=r"time, input 1: expected a dimension of rows of shape \(\), got 0"
    ):
        propose_references(data, 3, time=[0, 0])
    for name, make in propose_references(data, 3, held=[None, True]).items():
        x, lengths = make([each[:2] for each in data])
        assert torch.equal(lengths, data[1][:2, None].expand(2, 3)), name
        assert x.shape == (2, 3, 5, 2)


def test_tokens_are_at_a_distance_where_they_differ() -> None:
    """Three rows of one kind and two of another, which differ everywhere: one medoid each."""
    tokens = torch.tensor([[5, 6, 7], [5, 6, 8], [5, 6, 7], [900, 1, 2], [900, 1, 3]])
    proposed = propose_references(tokens, 2)
    rows = proposed["medoids"].background
    assert rows.dtype == torch.int64
    assert torch.equal(rows[0], tokens[0])
    assert rows[1, :2].tolist() == [900, 1]
    made = proposed["permuted"](tokens)
    assert torch.equal(made.sort(2).values, tokens.sort(1).values[:, None].expand(5, 2, 3))


def test_no_sample_is_its_own_reference() -> None:
    data = drawn(4, 3, 2)
    nearest = propose_references(data, 4, held=[True, False])["conditional"](data[:1])
    assert not (nearest[0] == data[0]).reshape(4, -1).all(1).any()
    # Three others: the nearest comes again.
    assert torch.equal(nearest[0, 3], nearest[0, 0])
    with pytest.raises(RewriteError, match="sample 0 equals all rows of the data"):
        propose_references(data[:1].repeat(3, 1, 1), 2, held=[True, False])["conditional"](data[:1])


@pytest.mark.parametrize("seed", range(8))
def test_no_order_is_the_samples_own(seed: int) -> None:
    x = drawn(3, 2, 1)
    assert not (propose_references(x, 3, seed=seed)["permuted"](x) == x.unsqueeze(1)).any()
    assert list(propose_references(x[:, :1], 3, seed=seed)) == ["medoids"]


def test_a_mask_of_words_is_refused() -> None:
    with pytest.raises(RewriteError, match="held, input 0: expected booleans, got 'x'"):
        propose_references(drawn(4, 3, 2), 2, held="x")
