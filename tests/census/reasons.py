"""Why some of torch's operations are not exact."""

from __future__ import annotations

from collections.abc import Mapping

_RANDOM = "draws random numbers"
_ROWS = "normalises by statistics of the batch, hence mixes its rows"
_NARROW = "rounds to a type of fewer digits"

#: By the name of torch's entry.
REASONS: Mapping[str, str] = {
    "normal": _RANDOM,
    "normal number_mean": _RANDOM,
    "bernoulli": _RANDOM,
    "svd_lowrank": _RANDOM,
    "pca_lowrank": _RANDOM,
    "nn.functional.rrelu": _RANDOM,
    "nn.functional.batch_norm": _ROWS,
    "native_batch_norm": _ROWS,
    "_native_batch_norm_legit": _ROWS,
    "_batch_norm_with_update": _ROWS,
    "nn.functional.instance_norm": _ROWS,
    "nn.functional.fractional_max_pool2d": _RANDOM,
    "nn.functional.fractional_max_pool3d": _RANDOM,
    **dict.fromkeys(("float", "half", "bfloat16", "chalf", "cfloat"), _NARROW),
    **dict.fromkeys(
        ("var unbiased", "std unbiased", "var_mean unbiased", "std_mean unbiased", "dist", "norm nuc"),
        "without dimensions it goes over all rows of a batch",
    ),
    **dict.fromkeys(
        (
            "lu",
            "lu_solve",
            "linalg.lu_factor",
            "linalg.lu_solve",
            "linalg.lstsq",
            "linalg.lstsq grad_oriented",
        ),
        "no rule yet",
    ),
    "nn.functional.max_unpool1d": "puts several numbers into one place",
    "nn.functional.max_unpool2d": "puts several numbers into one place",
    "nn.functional.max_unpool3d": "puts several numbers into one place",
    "nn.functional.poisson_nll_loss": "no rule yet for full=True",
    "renorm": "no rule yet",
    "mode": "counts equal numbers",
    "linalg.eig": "torch has a gradient only of what does not hang on the phase of an eigenvector",
}
