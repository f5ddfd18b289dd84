"""Programs of ``torch.export``: the oracle is the module that was exported."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passes.errors import DeclinedError, InputError
from rewriter import DeepExplainer, check_equivalence, decompose, diagnose, export_onnx
from tests.support.additive import additivity_errors
from tests.support.models import gallery

# Torch says of itself that it uses what is deprecated, when it copies what describes a program.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec, LeafSpec:FutureWarning",
    "ignore:The tensor attributes .* were assigned during export:UserWarning",
)
# Sums of some hundred roundings, of numbers of the order of 1.
EXACT = 1e-12


def exported(model: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    """Export a model in evaluation mode, for any batch size."""
    batch = torch.export.Dim("batch")
    free = tuple({0: batch} for _ in inputs)
    return torch.export.export(model.eval(), inputs, dynamic_shapes=free)


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    ("kind", "options"),
    [("LSTM", {}), ("GRU", {}), ("RNN", {}), ("LSTM", {"bidirectional": True, "num_layers": 2})],
)
def test_a_program_with_recurrent_layers_is_exact(kind: str, options: dict[str, Any]) -> None:
    model = gallery.Classifier(kind, **options).double()
    x, background = torch.randn(4, 5, 3).double(), torch.randn(6, 5, 3).double()
    program: Any = exported(model, x)
    decomposed = decompose(program)
    assert (decomposed(x) - model(x)).abs().max() < EXACT
    assert not decomposed.report.islands
    assert not decomposed.report.uncovered
    values = DeepExplainer(program, background).shap_values(x)
    expected = model(x) - model(background).mean(0)
    np.testing.assert_allclose(values.sum((1, 2)), expected.detach().numpy(), rtol=0, atol=EXACT)


def test_every_explainer_is_exact_on_what_a_program_becomes() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.cell, self.head = nn.LayerNorm(3), nn.GRUCell(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            # A loop whose length torch.fx would not know.
            h = x.new_zeros(x.shape[0], 4)
            for t in range(x.shape[1]):
                h = self.cell(self.norm(x[:, t]), h) * torch.sigmoid(x[:, t, :1])
            return self.head(torch.softmax(h, -1) * h)

    model = Mixed().double()
    x = torch.randn(3, 4, 3).double()
    graph = decompose(exported(model, x))
    assert (graph(x) - model(x)).abs().max() < EXACT
    for name, error in additivity_errors(graph, x, torch.randn(5, 4, 3).double()).items():
        assert error < EXACT, name


def test_all_doors_take_a_program(tmp_path: Path) -> None:
    model = gallery.Classifier("GRU")
    x, background = torch.randn(4, 5, 3), torch.randn(6, 5, 3)
    program: Any = exported(model, x)
    assert check_equivalence(model, program, x, tolerances={torch.float32: 1e-5}).equal
    # The rule of stock shap for a product of what varies is wrong.
    assert diagnose(program, x[:1], background).total > 1e-3
    assert export_onnx(program, x, tmp_path / "program.onnx").operators["Tanh"] == 5


class Structured(nn.Module):
    """Takes and returns containers, and has two outputs of which one is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor, *, more: dict[str, Tensor], scale: Tensor) -> dict[str, Any]:
        return {"y": [torch.tanh(self.head(x) * more["a"])], "scale": scale}


def test_arguments_and_results_keep_their_structure() -> None:
    model = Structured()
    x, keywords = torch.randn(2, 3), {"more": {"a": torch.randn(2, 1)}, "scale": torch.ones(2)}
    program = torch.export.export(model, (x,), keywords)
    for given in (program, program.module()):
        decomposed = decompose(given)
        got, expected = decomposed(x, **keywords), model(x, **keywords)
        assert list(got) == list(expected)
        assert (got["y"][0] - expected["y"][0]).abs().max() < 1e-6
        assert got["scale"] is keywords["scale"]
        assert {name for name, _ in decomposed.named_parameters()} == {"head.weight", "head.bias"}
        assert decomposed.head.weight is dict(given.named_parameters())["head.weight"]


def test_a_program_takes_only_what_it_was_exported_for() -> None:
    decomposed = decompose(exported(gallery.Classifier(), torch.randn(4, 5, 3)))
    assert decomposed(torch.randn(1, 5, 3)).shape == (1, 2)
    with pytest.raises(InputError, match=r"x\.size\(\)\[1\] == 5; export the model with dynamic_shapes"):
        decomposed(torch.randn(4, 6, 3))


def test_kernels_that_cannot_be_written_out_any_more_are_named() -> None:
    module = exported(gallery.Classifier(), torch.randn(4, 5, 3)).module()
    with pytest.raises(DeclinedError, match=r"calls torch's lstm; .*or the exported program itself"):
        decompose(module)


def test_operators_without_a_rule_are_named() -> None:
    class Commonest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mode(-1, keepdim=True).values

    program = exported(nn.Sequential(nn.LayerNorm(3), Commonest()), torch.randn(4, 3))
    decomposed = decompose(program.run_decompositions())
    assert [each.operation for each in decomposed.report.uncovered] == ["mode"]


def test_the_program_stays_as_it_is_and_the_result_can_be_copied() -> None:
    x = torch.randn(4, 5, 3)
    program = exported(gallery.Classifier(), x)
    module = program.module()
    code, hooks = program.graph_module.code, len(module._forward_pre_hooks)
    decomposed = copy.deepcopy(decompose(program))
    decompose(exported(nn.Tanh(), x).module())
    assert (program.graph_module.code, len(module._forward_pre_hooks)) == (code, hooks)
    assert (decomposed(x) - module(x)).abs().max() < 1e-6
    with pytest.raises(pickle.PicklingError, match="torch cannot pickle what it exported"):
        pickle.dumps(decomposed)
