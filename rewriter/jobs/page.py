"""A page about the first rows of a job."""

from __future__ import annotations

from pathlib import Path

from rewriter.html.report import HtmlReport, html_report
from rewriter.jobs.job import Job, Summary, named
from rewriter.jobs.parts import JobError
from rewriter.jobs.tables import reshaped


def write_page(job: Job, summary: Summary, path: Path, rows: int) -> HtmlReport:
    """Write the page of :func:`rewriter.html_report` about the first rows that could be explained.

    Args:
        job: what was done.
        summary: what it gave.
        path: of the file.
        rows: how many of the data to look at.

    Raises:
        JobError: if none of them could be explained.

    """
    count = min(rows, summary.rows)
    failed = {row for row, _ in summary.failed}
    good = [row for row in range(count) if row not in failed]
    if not good:
        raise JobError(f"{path}: none of the first {count} rows was explained, so there is nothing to show")
    arrays = named(reshaped(job.table.read(0, count), job.shape), job)
    return html_report(
        job.attributor.explainer,
        job.attributor.inputs(arrays, good),
        path,
        feature_names=job.table.columns,
        sample_names=[f"row {row}" for row in good],
        **job.nearer,
    )
