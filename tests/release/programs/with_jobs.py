"""The extra ``jobs``: Parquet in, Parquet out."""

from __future__ import annotations

from pathlib import Path

from models import built

from rewriter.jobs.formats import open_table

_, _, x = built()
import pyarrow as pa  # noqa: E402 -- after what must not need it
import pyarrow.parquet as pq  # noqa: E402

pq.write_table(pa.table({"x": x.flatten(1).tolist()}), "data.parquet")
assert open_table(Path("data.parquet")).rows == len(x)
