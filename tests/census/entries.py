"""The verdict on one of torch's operations: its samples, its forms, and whatever of its operands varies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn
from torch.testing._internal.common_methods_invocations import op_db

from tests.census.batched import Around, RowByRow, inputs_of, models_of
from tests.census.judging import InCode, Verdict, graph_of, judged, program_of
from tests.census.samples import DOUBLE, Drawn, drawn

#: All that torch has a derivative of, in float64.
ENTRIES = [each for each in op_db if DOUBLE in each.dtypes and each.supports_autograd]


class Finding(NamedTuple):
    """What was found of one model.

    Args:
        sample: which of the operation's samples.
        varying: which of its operands vary.
        form: how it is called: in a graph, in code that runs, exported; or a method, an operator.
        batch: where the batch stands.
        verdict: on the explanation.
        said: by whom it was refused, or how far it is off.

    """

    sample: int
    varying: tuple[int, ...]
    form: str
    batch: str
    verdict: Verdict
    said: str


def name_of(entry: Any) -> str:
    """Return what torch calls an entry."""
    return f"{entry.name} {entry.variant_test_name}".strip()


def names_of(entry: Any) -> list[str]:
    """Return all names by which an error may call the operation."""
    return [entry.name, entry.aten_name, *(each.name for each in entry.aliases)]


def findings(entry: Any, count: int, *, forms: bool = True, exported: bool = True) -> Iterator[Finding]:
    """Yield what is found of an operation.

    Args:
        entry: torch's.
        count: how many samples are used.
        forms: whether its methods, operators and other names are called, too.
        exported: whether it is also taken as torch.export makes it.

    """
    used = 0
    for k, sample in enumerate(drawn(entry, 4 * count)):
        if used == count:
            return
        found = [
            finding
            for n, places in enumerate(_choices(sample))
            for finding in _of_sample(entry, sample.only(places), k, exported=exported and not used and not n)
        ]
        yield from found
        if found and forms and not used:
            yield from _of_forms(entry, sample, k)
        used += bool(found)


def _choices(sample: Drawn) -> Iterator[tuple[int, ...]]:
    """Yield what varies: all operands together, then each alone."""
    yield from dict.fromkeys([tuple(sample.rows), *((place,) for place in sample.rows)])


def _model(sample: Drawn) -> tuple[Drawn, Around] | None:
    for each in (sample, sample.positive()):
        model = next(models_of(each), None)
        if model is not None:
            return each, model
    return None


def _of_sample(entry: Any, sample: Drawn, k: int, *, exported: bool) -> Iterator[Finding]:
    made = _model(sample)
    if made is None:
        return
    sample, model = made
    x, names = inputs_of(sample), names_of(entry)
    candidates: list[tuple[str, Callable[[], Any]]] = [("code", lambda: InCode(model))]
    if not isinstance(model, RowByRow):
        candidates.append(("graph", lambda: graph_of(model, x)))
    if exported:
        candidates.append(("export", lambda: program_of(model, x)))
    for form, make in candidates:
        explained = make()
        if explained is not None:
            found = judged(explained, model, x, names)
            yield Finding(k, tuple(sample.rows), form, model.name, *found)


def _of_forms(entry: Any, sample: Drawn, k: int) -> Iterator[Finding]:
    """Call methods, operators and other names of an operation, all operands varying."""
    for form, function in forms_of(entry).items():
        made = _model(replace(sample, function=function))
        if made is not None:
            drawn_form, model = made
            x = inputs_of(drawn_form)
            explained: nn.Module = (None if isinstance(model, RowByRow) else graph_of(model, x)) or InCode(
                model
            )
            found = judged(explained, model, x, names_of(entry))
            yield Finding(k, tuple(sample.rows), form, model.name, *found)


def forms_of(entry: Any) -> dict[str, Callable[..., Any]]:
    """Return the methods, operators and other names that torch lists for an operation."""
    found = {
        "method": entry.method_variant,
        "in place": _on_a_copy(entry.inplace_variant),
        "operator": entry.operator_variant,
        "operator in place": _on_a_copy(entry.inplace_operator_variant),
        **{each.name: each.op for each in entry.aliases},
    }
    return {name: each for name, each in found.items() if each is not None and each is not entry.op}


def _on_a_copy(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    if function is None:
        return None

    def call(input: Any, *args: Any, **kwargs: Any) -> Any:
        return function(input.clone(), *args, **kwargs)

    return call


def verdict_of(found: list[Finding]) -> Verdict | None:
    """Return the worst of what was found, None if nothing was."""
    order = list(Verdict)
    return max((each.verdict for each in found), key=order.index, default=None)
