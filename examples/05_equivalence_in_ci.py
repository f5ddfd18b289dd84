"""Prove in CI that a rewritten model computes what the original computes, and see a fault being caught.

Run it with ``python examples/05_equivalence_in_ci.py``. The exit status says whether all is well, the
report goes to ``out/equivalence.json`` for whatever reads it next.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from rewriter import RewriteError, assert_equivalent, check_equivalence, decompose


class SpeakerClassifier(nn.Module):
    """A model as people write it: torch.fx cannot trace it, because it packs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 16, num_layers=2, bidirectional=True, dropout=0.2, batch_first=True)
        self.head = nn.Linear(32, 9)

    def forward(self, x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return the logits (B, 9) and the final states (4, B, 16) for ``x`` (B, T, 12)."""
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(packed)
        return {"logits": self.head(torch.cat((h[-2], h[-1]), -1)), "state": h}


def main() -> None:
    torch.manual_seed(0)
    model = SpeakerClassifier().eval()
    rewritten = decompose(model)
    inputs = {"x": torch.randn(4, 10, 12), "lengths": torch.tensor([7, 10, 3, 9])}

    # What a test in CI does: one line, which raises with the table below.
    assert_equivalent(model, rewritten, inputs)

    report = check_equivalence(model, rewritten, inputs)
    print(report)
    path = Path("out/equivalence.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(report.to_json())
    print(f"\nwrote {path}\n")

    # A fault that no shape check sees: input gate and forget gate swapped in one direction.
    wrong = copy.deepcopy(rewritten)
    (place,) = rewritten.report.parameter_names["lstm.weight_ih_l1_reverse"]
    weight = wrong.get_parameter(place)
    with torch.no_grad():
        weight.copy_(torch.cat((weight[16:32], weight[:16], weight[32:])))
    try:
        assert_equivalent(model, wrong, inputs, tolerances={torch.float64: 1e-10})
    except RewriteError as error:
        print("with two gates swapped:", error)
    else:
        raise SystemExit("the planted fault was not caught")


if __name__ == "__main__":
    main()
