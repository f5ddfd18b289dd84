"""Layer-wise relevance propagation for an LSTM, gates receiving nothing ("LRP-all", signal takes all).

Arras, Montavon, Müller and Samek 2017, "Explaining Recurrent Neural Network Predictions in Sentiment
Analysis" (arXiv:1706.07206), compared with others in arXiv:1904.11829; written from these rules:

- A sum z = Σ_i w_i a_i + b hands its relevance R to its terms in proportion,
  R_i = w_i a_i / (z + ε sign z) · R; what falls to the bias and to ε is lost.
- A product of a gate and a signal hands all of it to the signal.
- An activation passes it on unchanged.

No reference takes part: relevance distributes f(x) itself, and only a network without biases conserves it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-3


def stabilised(z: Tensor, epsilon: float) -> Tensor:
    """Move ``z`` away from zero by ``epsilon``, zero counting as positive."""
    return z + torch.where(z >= 0, epsilon, -epsilon)


def lrp(layer: nn.LSTM, head: nn.Linear, x: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Return the relevance (B, T, I) of the inputs for ``head(layer(x)[0][:, -1])``.

    Args:
        layer: one layer, one direction, batch first, no projection.
        head: with one output.
        x: samples (B, T, I).
        epsilon: the stabiliser.

    Raises:
        ValueError: for any other layer or head.

    """
    plain = layer.num_layers == 1 and not layer.bidirectional and layer.batch_first and not layer.proj_size
    if not plain or head.out_features != 1:
        raise ValueError(f"expected a plain LSTM and a head with one output, got {layer} and {head}")
    H = layer.hidden_size
    into_g, back_to_g = layer.weight_ih_l0[2 * H : 3 * H], layer.weight_hh_l0[2 * H : 3 * H]
    h = c = x.new_zeros(len(x), H)
    tape = []
    with torch.no_grad():
        for x_t in x.unbind(1):
            gates = x_t @ layer.weight_ih_l0.T + h @ layer.weight_hh_l0.T
            if layer.bias:
                gates = gates + layer.bias_ih_l0 + layer.bias_hh_l0
            i, f, z, o = gates.chunk(4, 1)
            kept, new = f.sigmoid() * c, i.sigmoid() * z.tanh()
            tape.append((x_t, h, z, kept, new))
            c = kept + new
            h = o.sigmoid() * c.tanh()
        output = head(h)
        R_h = h * head.weight / stabilised(output, epsilon) * output
        R_c = torch.zeros_like(R_h)
        relevance = []
        for x_t, h_before, z, kept, new in reversed(tape):
            per_unit = (R_c + R_h) / stabilised(kept + new, epsilon)
            R_z = new * per_unit / stabilised(z, epsilon)
            relevance.append(x_t * (R_z @ into_g))
            R_h, R_c = h_before * (R_z @ back_to_g), kept * per_unit
    return torch.stack(relevance[::-1], 1)
