"""Takes the census, and writes down what it found: ``python -m tests.census``."""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from pathlib import Path

import torch

from tests.census.entries import ENTRIES, findings, name_of
from tests.census.modules import MODULES, findings_of_module
from tests.census.table import Record, recorded, write_results

ROOT = Path(__file__).parent.parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.census", description=__doc__)
    parser.add_argument("--only", default="", help="a pattern of names; the results are then only printed")
    parser.add_argument("--samples", type=int, default=4, help="of each operation")
    parser.add_argument("--part", default="0/1", help="which part of all, of how many")
    parser.add_argument("--into", type=Path, default=None, help="where a part is kept, to be merged")
    parser.add_argument("--merge", type=Path, nargs="*", help="parts that were kept")
    asked = parser.parse_args()
    if asked.merge:
        # Of what was counted twice the last counts.
        kept = {each.name: each for file in asked.merge for each in recorded(file)}
        write_results(ROOT, kept.values())
        return
    torch.set_num_threads(1)
    part, parts = map(int, asked.part.split("/"))
    records = []
    entries = [each for each in ENTRIES if re.search(asked.only, name_of(each))]
    modules = [each for each in MODULES if re.search(asked.only, each.name)]
    for entry in entries[part::parts]:
        start = time.perf_counter()
        found = list(findings(entry, asked.samples))
        records.append(Record.of(name_of(entry), "operation", found))
        _print(records[-1], time.perf_counter() - start)
    for module in modules[part::parts]:
        start = time.perf_counter()
        records.append(Record.of(module.name, "module", list(findings_of_module(module, asked.samples))))
        _print(records[-1], time.perf_counter() - start)
    print(Counter(each.verdict for each in records))
    if asked.into is not None:
        asked.into.write_text("\n".join(each.as_json() for each in records) + "\n")
    elif not asked.only and parts == 1:
        write_results(ROOT, records)


def _print(record: Record, seconds: float) -> None:
    print(f"{record.name}: {record.verdict}, {record.models} models, {seconds:.1f} s", flush=True)
    for each in record.faults[:2]:
        print(f"    {each}", flush=True)


if __name__ == "__main__":
    main()
