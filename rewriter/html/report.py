"""An explanation as one HTML file, that opens from disk and asks nothing of any network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from passes.errors import RewriteError
from rewriter.engine.path.nearness import Nearer
from rewriter.explainer.explainer import DeepExplainer
from rewriter.html.page import page_of
from rewriter.html.samples import shown


@dataclass(frozen=True)
class HtmlReport:
    """What :func:`rewriter.html_report` wrote.

    Args:
        path: of the file.
        samples: how many it shows.
        left_out: how many there was no room for.
        bytes: its size.

    """

    path: Path
    samples: int
    left_out: int
    bytes: int

    def __str__(self) -> str:
        left = f", {self.left_out} more left out for their size" if self.left_out else ""
        return f"{self.path}: {self.samples} samples{left}, {self.bytes / 1e6:.2f} MB"


def html_report(
    explainer: DeepExplainer,
    X: Any,
    path: str | PathLike[str],
    *,
    title: str | None = None,
    feature_names: Sequence[str] | None = None,
    row_names: Any = None,
    sample_names: Sequence[str] | None = None,
    references: Any = None,
    max_bytes: int = 5_000_000,
    **nearer: Unpack[Nearer],
) -> HtmlReport:
    """Explain samples, and write an interactive page about them: one file, without a request to any network.

    It shows for each sample and output the prediction, the base value, a heat map, the largest shares and a
    table to download; and what was proven. It is written only if shares sum to the prediction, and the
    rewritten model gives what the model does. Numbers have nine digits.

    Args:
        explainer: explains them.
        X: samples, as for ``explainer(X)``.
        path: of the file, which is replaced.
        title: of the page.
        feature_names: of the last dimension of an input, or of all its elements; the explainer's by default.
        row_names: of the dimensions before that, such as time stamps; or a list of them for each sample,
            such as its tokens.
        sample_names: of the samples.
        references: a background of its own for each sample.
        max_bytes: samples that do not fit are left out, from the last one on; the page and the result say so.
        **nearer: as for :meth:`rewriter.DeepExplainer.shap_values`.

    Raises:
        AdditivityError: if shares do not sum to what they explain.
        RewriteError: for samples or names that do not fit, if there is no room for a single sample, or no
            folder to write to.

    Example:
        >>> import tempfile, torch
        >>> explainer = DeepExplainer(torch.nn.Linear(3, 1), torch.randn(5, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = html_report(explainer, torch.randn(2, 3), f"{folder}/report.html")
        >>> report.samples, report.left_out
        (2, 0)

    """
    file = checked_path(path)
    found = shown(
        explainer,
        X,
        feature_names=feature_names,
        row_names=row_names,
        sample_names=sample_names,
        references=references,
        nearer=nearer,
    )
    samples = [found.of_sample(m) for m in range(len(found.samples))]
    model = type(explainer._asked.model).__name__
    title = f"Explanation of {model}" if title is None else str(title)

    def page(count: int) -> bytes:
        left = len(samples) - count
        summary = f"{count} samples, {len(found.outputs)} outputs of {model}, exact DeepSHAP by rewriter."
        size = f"The file is kept below {max_bytes / 1e6:g} MB"
        size += f": {left} of {len(samples)} samples are left out." if left else "."
        # A name may hold what is no character by itself.
        text = page_of(found, samples[:count], title, summary, size)
        return text.encode("utf-8", "backslashreplace")

    count = len(samples)
    written = page(count)
    while len(written) > max_bytes:
        if count == 1:
            raise RewriteError(
                f"html_report: a single sample takes {len(written) / 1e6:.1f} MB, more than max_bytes of "
                f"{max_bytes / 1e6:g} MB; pass a larger max_bytes, or an explainer of fewer outputs (output=)"
            )
        # All are of about one size; at least one goes.
        count = max(1, min(count - 1, int(count * max_bytes / len(written))))
        written = page(count)
    file.write_bytes(written)
    return HtmlReport(file, count, len(samples) - count, len(written))


def checked_path(path: str | PathLike[str]) -> Path:
    """Return where a page is to be written, before there is work to be lost.

    Raises:
        RewriteError: if that is a folder, or in none.

    Example:
        >>> checked_path("report.html").name
        'report.html'

    """
    file = Path(path)
    if file.is_dir() or not file.parent.is_dir():
        raise RewriteError(
            f"{file}: expected the name of a file, such as report.html, in a folder that is there"
        )
    return file
