"""Why some of torch's operations are not exact, and which have no value that could be."""

from __future__ import annotations

from collections.abc import Mapping

_RANDOM = "draws random numbers: its result is no function of its operands"
_NO_SAMPLE = (
    "none of torch's samples became a model: they have more than 1500 numbers, differ in more than their "
    "numbers from draw to draw, or give what is not finite or what no operand changes"
)

#: By the name of torch's entry: those whose result has no defined value. They are not counted.
WITHOUT_VALUE: Mapping[str, str] = {
    "normal": _RANDOM,
    "normal number_mean": _RANDOM,
    "bernoulli": _RANDOM,
    "nn.functional.rrelu": f"in training it {_RANDOM}; in evaluation it is exact",
    "nn.functional.fractional_max_pool2d": f"its windows are drawn: it {_RANDOM}",
    "nn.functional.fractional_max_pool3d": f"its windows are drawn: it {_RANDOM}",
    "nn.FractionalMaxPool2d": f"its windows are drawn: it {_RANDOM}",
    "nn.FractionalMaxPool3d": f"its windows are drawn: it {_RANDOM}",
    "linalg.eig": "the phase of an eigenvector is not defined, and torch has no gradient of what hangs on it",
}
#: By the name of torch's entry: of those that are refused, why.
REASONS: Mapping[str, str] = {
    "max_pool2d_with_indices_backward": "which places a pool has chosen is discrete",
    "mode": "counts equal numbers, which is discrete",
    "renorm": "no rule yet",
}


def why_not_tried(name: str) -> str:
    """Return why nothing is known of an entry."""
    return WITHOUT_VALUE.get(name, _NO_SAMPLE)
