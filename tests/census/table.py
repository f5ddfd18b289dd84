"""What a census found, as JSON for programs and as a table for readers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tests.census.entries import Finding, verdict_of
from tests.census.judging import Verdict
from tests.census.reasons import REASONS, WITHOUT_VALUE, why_not_tried

NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Record:
    """What was found of one operation or module.

    Args:
        name: torch's.
        kind: ``"operation"`` or ``"module"``.
        verdict: the worst on any of its models.
        models: how many were explained.
        forms: in which forms.
        faults: what was not exact, and what was said of it.

    """

    name: str
    kind: str
    verdict: str
    models: int
    forms: list[str]
    faults: list[str]

    @classmethod
    def of(cls, name: str, kind: str, found: list[Finding]) -> Record:
        worst = verdict_of(found)
        faults = [
            f"{each.verdict.value}, sample {each.sample}, operands {each.varying}, {each.form}, "
            f"batch {each.batch}: {each.said}"
            for each in found
            if each.verdict is not Verdict.EXACT
        ]
        forms = sorted({each.form for each in found})
        return cls(name, kind, NOT_TRIED if worst is None else worst.value, len(found), forms, faults)

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def recorded(file: Path) -> list[Record]:
    """Read records, one a line."""
    return [Record(**json.loads(line)) for line in file.read_text().splitlines() if line]


def write_results(root: Path, records: Iterable[Record]) -> None:
    """Write ``benchmarks/results/census.json`` and the table in the documentation."""
    ordered = sorted(records, key=lambda each: (each.kind, each.name))
    kept = {
        "torch": torch.__version__.partition("+")[0],
        "verdicts": counts(ordered),
        "records": [{**asdict(each), "faults": each.faults[:3]} for each in ordered],
    }
    (root / "benchmarks/results/census.json").write_text(json.dumps(kept, indent=1) + "\n")
    (root / "docs/reference/operations.md").write_text(page(ordered))


def counts(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    """Count the verdicts on operations and modules."""
    found: dict[str, dict[str, int]] = {}
    for each in records:
        of_kind = found.setdefault(each.kind, {})
        of_kind[each.verdict] = of_kind.get(each.verdict, 0) + 1
    return found


def share_of_exact(records: Iterable[Record]) -> float:
    """Return the share of operations that are exact, among those that count."""
    counted = [each for each in records if counts_in(each)]
    return sum(each.verdict == Verdict.EXACT.value for each in counted) / max(len(counted), 1)


def counts_in(record: Record) -> bool:
    """Whether an operation could be tried, and has a value of which to be exact."""
    tried = record.kind == "operation" and record.verdict != NOT_TRIED
    return tried and (record.verdict == Verdict.EXACT.value or record.name not in WITHOUT_VALUE)


# How the error for operations without a rule begins.
_NOT_ADDITIVE = "the attributions of output"


def reason_of(record: Record) -> str:
    """Return why something is not exact: as it is written down, or as it was said."""
    if record.verdict == NOT_TRIED or record.name in WITHOUT_VALUE:
        return why_not_tried(record.name)
    if record.name in REASONS:
        return REASONS[record.name]
    said = record.faults[0].partition(": ")[2]
    return "no rule yet" if said.startswith(_NOT_ADDITIVE) else said[:120]


HEAD = """# Which operations have a rule

`make census` writes this page: it explains small models around every operation of torch's own database
(`op_db`, torch {torch}) that has a derivative in float64, and around its modules, on torch's own samples. All
operands vary together, then each alone; a model is explained as a graph, as code that runs, and as
`torch.export` makes it; methods, operators, forms in place and other names are called, too. *Exact* means
that attributions sum to the change of the output to 1e-9 in every model, or to one rounding of what the
operation returns, where that has a type of fewer digits. *Refused by name* means that an error says which
operation has no rule. `benchmarks/results/census.json` has the figures.

{share:.1%} of the {tried} operations that count are exact. Not counted are those that could not be tried, and
those that are refused and whose result has no defined value; the reason stands beside each.

| | {verdicts} |
|---|{lines}|
{rows}
"""


def page(records: list[Record]) -> str:
    """Return the page of the documentation."""
    verdicts = [*(each.value for each in Verdict), NOT_TRIED]
    found = counts(records)
    rows = [
        f"| {kind}s | " + " | ".join(str(found[kind].get(each, 0)) for each in verdicts) + " |"
        for kind in found
    ]
    tried = sum(map(counts_in, records))
    text = HEAD.format(
        torch=torch.__version__.partition("+")[0],
        share=share_of_exact(records),
        tried=tried,
        verdicts=" | ".join(verdicts),
        lines="|".join("---" for _ in verdicts),
        rows="\n".join(rows),
    )
    for kind in ("operation", "module"):
        others = [each for each in records if each.kind == kind and each.verdict != Verdict.EXACT.value]
        text += f"\n## {kind.capitalize()}s that are not exact\n\n| name | verdict | why |\n|---|---|---|\n"
        text += "".join(f"| `{each.name}` | {each.verdict} | {_cell(reason_of(each))} |\n" for each in others)
        exact = [
            f"`{each.name}`" for each in records if each.kind == kind and each.verdict == Verdict.EXACT.value
        ]
        text += f"\n## Exact {kind}s\n\n{', '.join(exact)}\n"
    return text


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
