"""What pictures show, read off what was drawn: the numbers of an image, the ends of lines, the words."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import shap
import torch
from matplotlib.colors import to_rgba
from torch import nn

from passes.errors import RewriteError
from rewriter import DeepExplainer, decompose
from rewriter import plot as drawing
from rewriter.plot.cost_front import on_front
from rewriter.plot.rewritten import CODE, COLOURS, LINEAR, NONE, RULE, SWEPT, parts_of
from rewriter.plot.sequences import one_sequence
from rewriter.plot.style import BLUE, RED

# What matplotlib draws has types that say little of it.
plot: Any = drawing
NAMES = ["hum", "temp", "wind"]


class Last(nn.Module):
    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@pytest.fixture
def values() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(5, 3))


def explained(outputs: int = 1) -> tuple[Any, np.ndarray[Any, Any]]:
    model, x = Last(outputs).double(), torch.randn(4, 6, 3).double()
    explainer = DeepExplainer(model, torch.randn(8, 6, 3).double(), progress=False)
    return explainer(x), model(x).detach().numpy()


class TestHeatMap:
    def test_draws_values_signal_and_a_course_that_ends_at_the_prediction(self) -> None:
        explanation, f = explained()
        figure = plot.heatmap(explanation, sample=2, feature_names=NAMES)
        course, signal, image, bar = figure.axes
        (drawn,) = image.images
        assert np.array_equal(drawn.get_array(), explanation.values[2].T)
        assert [label.get_text() for label in image.get_yticklabels()] == NAMES
        assert np.array_equal([line.get_ydata() for line in signal.lines], explanation.data[2].T)
        colours = [line.get_color() for line in signal.lines]
        assert [label.get_color() for label in image.get_yticklabels()] == colours
        dashed, line = course.lines
        assert np.allclose(dashed.get_ydata(), explanation.base_values[2], rtol=0, atol=1e-15)
        # Sums of 18 numbers of the order of 0.1, in float64.
        assert abs(line.get_ydata()[-1] - f[2, 0]) < 1e-14
        assert course.get_ylabel() == "f(x) so far"
        assert bar.get_ylabel() == "SHAP value"

    def test_colours_are_even_around_zero(self, values: np.ndarray[Any, Any]) -> None:
        (image,) = plot.heatmap(values).axes[1].images
        assert image.norm.vmax == -image.norm.vmin == np.abs(values).max()
        # A map has 256 colours: 0 is half of one off.
        assert np.allclose(image.cmap(image.norm(0.0)), 1, atol=0.005)
        assert image.cmap(1.0) == to_rgba(RED)
        assert image.cmap(0.0) == to_rgba(BLUE)

    def test_takes_an_output(self) -> None:
        explanation, f = explained(2)
        for given in (explanation, explanation[..., 1], explanation[3]):
            asked = {"sample": 3} if given is not explanation[3] else {}
            figure = plot.heatmap(given, output=1, **asked)
            assert np.array_equal(figure.axes[2].images[0].get_array(), explanation.values[3, ..., 1].T)
            assert abs(figure.axes[0].lines[1].get_ydata()[-1] - f[3, 1]) < 1e-14
            plt.close("all")

    def test_takes_the_models_own_course_and_a_figure(self, values: np.ndarray[Any, Any]) -> None:
        given = plt.figure()
        assert plot.heatmap(values, prediction=range(5), figure=given) is given
        assert list(given.axes[0].lines[1].get_ydata()) == [0, 1, 2, 3, 4]

    def test_of_zeros_has_a_scale(self) -> None:
        (image,) = plot.heatmap(np.zeros((2, 2))).axes[1].images
        assert image.norm.vmax == 1

    def test_labels_of_many_features_are_thinned_out(self) -> None:
        axes = plot.heatmap(np.zeros((2, 100))).axes[1]
        assert [label.get_text() for label in axes.get_yticklabels()[:3]] == ["x0", "x3", "x6"]

    def test_can_be_saved(self, tmp_path: Any) -> None:
        plot.heatmap(explained()[0]).savefig(tmp_path / "map.png")
        assert plt.imread(tmp_path / "map.png").std() > 0.05


def test_lines_over_time_sum_to_the_steps(values: np.ndarray[Any, Any]) -> None:
    ax = plot.over_time(values * [1, 3, 2], feature_names=NAMES, max_display=2)
    zero, temp, others = ax.lines
    assert [temp.get_label(), others.get_label()] == ["temp", "other 2 features"]
    assert np.array_equal(temp.get_ydata(), values[:, 1] * 3)
    assert np.allclose(temp.get_ydata() + others.get_ydata(), (values * [1, 3, 2]).sum(1), rtol=0, atol=1e-14)
    assert set(zero.get_ydata()) == {0}
    assert plot.over_time(values, ax=ax) is ax


def test_references_share_steps_and_colours() -> None:
    one, _ = explained()
    two, _ = explained()
    figure = plot.references({"zeros": one, "mean": two}, sample=1, feature_names=NAMES)
    first, second, _ = figure.axes
    assert first.images[0].norm is second.images[0].norm
    largest = max(np.abs(each.values[1]).max() for each in (one, two))
    assert first.images[0].norm.vmax == largest
    assert np.array_equal(second.images[0].get_array(), two.values[1].T)
    assert second.get_title().startswith(f"mean\n{two.base_values[1]:.3g} → ")
    with pytest.raises(RewriteError, match=r"same steps and features in all, got a: .2, 3., b: .2, 4."):
        plot.references({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))})
    with pytest.raises(RewriteError, match="got none"):
        plot.references({})


class TestTokens:
    def test_colours_follow_the_sums_of_tokens(self) -> None:
        values = np.array([[1.0, 1.0], [-3.0, 1.0], [0.5, 0.0], [0.0, 0.0]])
        ax = plot.tokens(values, ["so", "bad", "$"])
        words, numbers = ax.texts[::2], ax.texts[1::2]
        assert [each.get_text() for each in words] == ["so", "bad", r"\$"]
        assert [each.get_text() for each in numbers] == ["+2.0", "-2.0", "+0.5"]
        faces = [each.get_bbox_patch().get_facecolor() for each in words]
        assert faces[:2] == [to_rgba(RED), to_rgba(BLUE)]
        assert faces[2][0] == 1 > faces[2][1] > 0.5
        ax.figure.canvas.draw()

    @pytest.mark.parametrize("show_values", [True, False])
    def test_lines_are_broken_and_nothing_overlaps(self, show_values: bool) -> None:
        words = ["word" * (k % 4) or "a" for k in range(60)]
        ax = plot.tokens(np.linspace(-1, 1, 60), words, show_values=show_values)
        ax.figure.canvas.draw()
        axes = ax.get_window_extent()
        boxes = [each.get_window_extent() for each in ax.texts]
        assert len({each.get_position()[1] for each in ax.texts}) > 4
        assert axes.x0 <= min(box.x0 for box in boxes) < max(box.x1 for box in boxes) <= axes.x1
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))

    def test_more_steps_than_tokens_must_be_padding(self) -> None:
        with pytest.raises(RewriteError, match="1 for 2 steps, but what is beyond them added 1"):
            plot.tokens(np.ones(2), ["a"])
        for given in (["a", "b", "c"], [], "ab"):
            with pytest.raises(RewriteError, match="expected a list of at most 2 strings"):
                plot.tokens(np.ones(2), given)


class TestRewrite:
    def test_colours_say_how_each_part_is_explained(self) -> None:
        model = Last()
        ax = plot.rewrite(model, decompose(model))
        boxes = {
            text.get_text(): patch.get_facecolor()
            for text, patch in zip(ax.texts[2:], ax.patches, strict=False)
        }
        assert boxes["lstm: LSTM"] == to_rgba("#ffffff")
        assert boxes["Recurrence"] == to_rgba(COLOURS[SWEPT])
        assert boxes["Linear"] == to_rgba(COLOURS[LINEAR])
        assert ax.get_legend_handles_labels()[1] == [LINEAR, SWEPT]

    def test_calls_belong_to_the_modules_that_make_them(self) -> None:
        model = nn.Sequential(nn.LayerNorm(3), nn.GELU())
        norm, gelu = parts_of(model, decompose(model))
        assert (norm.name, norm.kind, gelu.kind) == ("0", "LayerNorm", "GELU")
        assert norm.became == {("Standardize", RULE): 1, ("mul", LINEAR): 1, ("add", LINEAR): 1}

    def test_what_has_no_rule_is_told(self) -> None:
        class Sketch(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.special.zeta(x, x) + 1

        model = Sketch()
        decomposed = decompose(model)
        uncovered = {each.name for each in decomposed.report.uncovered}
        told = {part.name for part in parts_of(model, decomposed) if NONE in {how for _, how in part.became}}
        assert told == uncovered
        assert uncovered

    def test_code_without_a_graph(self) -> None:
        class Branch(Last):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x) if x.sum() > 0 else super().forward(-x)

        model = Branch()
        parts = {part.name: part for part in parts_of(model, decompose(model))}
        assert parts["lstm"].became == {("Linear", LINEAR): 1, ("Recurrence", SWEPT): 1}
        assert parts["head"].became == {("Linear", LINEAR): 1}
        assert parts[""].became == {("Branch", CODE): 1}

    def test_many_steps_have_room(self) -> None:
        model = Last()
        ax = plot.rewrite(model, decompose(model, torch.zeros(1, 5, 3)), max_display=1)
        (lstm, *_) = parts_of(model, decompose(model, torch.zeros(1, 5, 3)))
        assert len(lstm.boxes) == 2
        assert sum(lstm.became[kind, RULE] for kind, how in lstm.became if how == RULE) == 5 * 8
        assert ax.texts[-1].get_text() == "… and 1 more"


def test_front_is_what_nothing_is_nearer_than_for_less() -> None:
    points: Any = {"a": (1.0, 1.0), "b": (2.0, 2.0), "c": (3.0, 0.5), "d": (3.0, 0.7)}
    assert on_front(points) == ["a", "c"]
    ax = plot.front(points, ours=["a"])
    assert np.array_equal(ax.lines[0].get_xydata(), np.array([[1, 1], [3, 0.5]]))
    assert [tuple(each.get_offsets()[0]) for each in ax.collections] == list(points.values())
    assert ax.collections[0].get_facecolor()[0].tolist() == list(to_rgba(RED))
    assert ax.get_xscale() == ax.get_yscale() == "log"
    for bad, message in (
        ({}, "got none"),
        ({"a": (0, 1)}, "larger than 0, got a: "),
        ({"a": (1, 2, 3)}, "larger than 0, got a: "),
    ):
        with pytest.raises(RewriteError, match=message):
            plot.front(bad)
    with pytest.raises(RewriteError, match="expected names of points, got x"):
        plot.front(points, ours=["x"])


@pytest.mark.parametrize(
    ("given", "asked", "message"),
    [
        (np.zeros(3), {}, r"expected values of shape \(T, F\).* got \(3,\)"),
        (np.zeros((2, 3, 4, 5, 6)), {}, r"got \(2, 3, 4, 5, 6\)"),
        (np.zeros((2, 0)), {}, r"expected some steps and features, got shape \(2, 0\)"),
        (np.array([[np.nan]]), {}, "expected finite values"),
        (np.zeros((2, 3, 4)), {"sample": 2}, "sample: expected 0 to 1, got 2"),
        (np.zeros((2, 3, 4, 5)), {"output": 5}, "output: expected 0 to 4, got 5"),
        (np.zeros((2, 3)), {"feature_names": ["a"]}, "expected 3 names, one per feature"),
        (np.zeros((2, 3)), {"feature_names": "abc"}, "expected 3 names, one per feature"),
        ("text", {}, "expected a shap.Explanation or an array of numbers, got str"),
        ([[1.0], [1.0, 2.0]], {}, "rows of different length"),
        (
            shap.Explanation(np.zeros((2, 3, 4)), base_values=np.zeros((2, 4))),
            {},
            r"base values of shape \(4,\) beside values of shape \(2, 3, 4\), got \(2, 4\)",
        ),
    ],
)
def test_what_cannot_be_drawn_says_what_was_expected(given: Any, asked: Any, message: str) -> None:
    with pytest.raises(RewriteError, match=message):
        one_sequence(given, **asked)


def test_other_arguments_are_checked(values: np.ndarray[Any, Any]) -> None:
    with pytest.raises(RewriteError, match="prediction: expected 5 numbers, one per step"):
        plot.heatmap(values, prediction=[1.0])
    with pytest.raises(RewriteError, match="max_display: expected 1 to 10 lines, got 0"):
        plot.over_time(values, max_display=0)
    with pytest.raises(RewriteError, match="expected at most 10 gates, got 11"):
        plot.gates(np.zeros((2, 11)))


def test_tensors_are_arrays() -> None:
    assert one_sequence(torch.ones(2, 3, requires_grad=True)).values.shape == (2, 3)


def test_matplotlib_is_imported_by_what_draws_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'rnn-rewriter\[plots\]'"):
        plot.heatmap(np.ones((2, 2)))
