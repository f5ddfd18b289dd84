"""What a rewrite did, layer by layer."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import fx, nn

from passes.errors import Decline, RewriteError

_ATTRIBUTES = ("report", "rewrite_report")
# Around the cells of a table: a line below the header, of a character that every terminal and file has.
_LINES = "\n".join(["    ", "    ", " -- ", *["    "] * 5, ""])


@dataclass(frozen=True)
class LayerReport:
    """One rewritten layer.

    Args:
        name: qualified name in the user's model, ``""`` for the model itself.
        kind: class name before the rewrite.
        front_end: ``"fx"`` if the layer is part of one graph, ``"islands"`` if it stands in the user's own
            code.
        level: ``"rolled"`` or ``"flat"``.
        atoms: number of activations and products it consists of; at the rolled level those of one
            step, which all steps share.
        parameters: ``"shared"`` with the original, or ``"copied"`` (split gates).

    """

    name: str
    kind: str
    front_end: str
    level: str
    atoms: int
    parameters: str


@dataclass(frozen=True)
class OperationReport:
    """One operation outside of the recurrent layers that became atoms.

    Args:
        name: qualified name of the module in the user's model, or name of the node in the graph.
        operation: class name of the module, or the function or method that was called.
        atoms: number of atoms it consists of.

    """

    name: str
    operation: str
    atoms: int


@dataclass(frozen=True)
class UncoveredReport:
    """One operation on the way from input to output that is neither linear nor has a rule.

    Args:
        name: qualified name of the module, or name of the node in the graph, or, in code that stays the
            user's, qualified name of the module whose code it is.
        operation: class name of the module, or the function or method that is called.
        source: file and line of the call, ``""`` if no code of the user's makes it.
        reason: why attributions are not exact there.

    """

    name: str
    operation: str
    source: str
    reason: str


@dataclass
class Proven:
    """On what a rewritten model was compared with the original, and how well it agreed, so far.

    Args:
        runs: what was run.
        largest: the largest difference of an output, or of a gradient of an input, relative to the largest
            number in it.
        notes: what could not be compared, and why.

    Example:
        >>> proven = Proven()
        >>> proven.add(Proven(["a batch"], 1e-7))
        >>> bool(proven), str(proven)
        (True, 'equal to the original, to 1.0e-07, on a batch')

    """

    runs: list[str] = field(default_factory=list)
    largest: float = 0.0
    notes: list[str] = field(default_factory=list)

    def note(self, why: str) -> None:
        """Say once why something was not compared."""
        if why not in self.notes:
            self.notes.append(why)

    def add(self, more: Proven) -> None:
        """Count another comparison in."""
        self.runs += more.runs
        for each in more.notes:
            self.note(each)
        self.largest = max(self.largest, more.largest)

    def __bool__(self) -> bool:
        """Whether anything was compared."""
        return bool(self.runs)

    def __str__(self) -> str:
        if not self.runs:
            return "not compared with the original so far"
        return f"equal to the original, to {self.largest:.1e}, on {', '.join(self.runs)}"


@dataclass(frozen=True)
class Report:
    """All that :func:`rewriter.decompose` did, and did not do; ``print`` shows it as a table.

    Args:
        layers: the rewritten layers.
        operations: what else became atoms.
        declines: the recurrent modules that stay as they are, with the reason.
        islands: qualified name of each module that torch.fx cannot follow, with the reason; it stays the
            user's code and works all the same.
        parameter_names: where each parameter of a rewritten layer is found now: one name, or one for
            each split gate.
        uncovered: operations on the way from input to output that no rule covers, by source line; in
            code that stays the user's they are found only with example inputs.
        code_was_run: example inputs were given, so that ``uncovered`` knows of that code, too.
        proven: on what the result was compared with the original, and how well it agreed.

    Example:
        >>> import torch, rewriter
        >>> report = rewriter.decompose(torch.nn.GRU(3, 2)).report
        >>> report.layers[0].kind, report.layers[0].atoms, report.declines
        ('GRU', 5, ())
        >>> bool(report), bool(report.proven)
        (True, False)

    """

    layers: tuple[LayerReport, ...] = ()
    declines: tuple[Decline, ...] = ()
    islands: Mapping[str, str] = field(default_factory=dict)
    parameter_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    operations: tuple[OperationReport, ...] = ()
    uncovered: tuple[UncoveredReport, ...] = ()
    code_was_run: bool = False
    proven: Proven = field(default_factory=Proven)

    def __bool__(self) -> bool:
        """Whether all of the model has an exact rule: nothing is declined, and nothing is uncovered.

        False, too, where code stays the user's and was not run on example inputs: what has no rule in it is
        not known. Whether the result computes what the original does is ``bool(report.proven)``.
        """
        looked_at = self.code_was_run or not self.islands
        return looked_at and not self.declines and not self.uncovered

    def __str__(self) -> str:
        rows = [
            (_shown(layer.name), layer.kind, layer.front_end, layer.level, str(layer.atoms), layer.parameters)
            for layer in self.layers
        ]
        text = render_table(("layer", "was", "front-end", "level", "atoms", "parameters"), rows)
        notes = [f"declined: {decline}" for decline in self.declines]
        notes += [f"kept as code: {_shown(name)}: {reason}" for name, reason in self.islands.items()]
        if self.islands and not self.code_was_run:
            notes.append("what has no rule in that code is listed where decompose gets example inputs")
        notes += [str(self.proven), *self.proven.notes]
        return printable("\n".join([text, *self._shown_operations(), *self._shown_uncovered(), *notes]))

    def _shown_operations(self) -> list[str]:
        if not self.operations:
            return []
        rows = [(_shown(each.name), each.operation, str(each.atoms)) for each in self.operations]
        return ["", render_table(("operation", "was", "atoms"), rows)]

    def _shown_uncovered(self) -> list[str]:
        if not self.uncovered:
            return []
        rows = [(_shown(each.name), each.operation, each.source, each.reason) for each in self.uncovered]
        return ["", render_table(("not covered", "operation", "at", "why"), rows)]

    @staticmethod
    def of(model: nn.Module) -> Report:
        """Return the report that a rewritten model carries, also if it has a ``report`` of its own.

        Raises:
            RewriteError: if the model was not made by decompose.

        """
        for name in _ATTRIBUTES:
            found = model.__dict__.get(name)
            if isinstance(found, Report):
                return found
        raise RewriteError(
            f"{type(model).__name__} was not made by decompose: it carries no report; pass what "
            "decompose returned"
        )

    def attach(self, model: nn.Module) -> None:
        """Make ``model`` carry the report, as ``report`` unless the user's class uses that name."""
        taken = hasattr(model, _ATTRIBUTES[0]) and _ATTRIBUTES[0] not in model.__dict__
        object.__setattr__(model, _ATTRIBUTES[taken], self)
        if isinstance(model, fx.GraphModule):
            # The entry of GraphModule.meta that survives copy.deepcopy.
            model.meta.setdefault("_user_preserved_attributes", {})[_ATTRIBUTES[taken]] = self

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, ready for ``json.dumps``."""
        return asdict(self)


def render_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Lay out rows as text, without colours, as wide as they need.

    Example:
        >>> print(render_table(("a", "b"), [("1", "2")]))
        a   b
        -----
        1   2

    """
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=Box(_LINES), padding=(0, 1), pad_edge=False, show_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out = io.StringIO()
    # In a notebook rich would show the table by itself, and return nothing.
    Console(file=out, width=400, color_system=None, force_jupyter=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()


def printable(text: str) -> str:
    r"""Escape what standard output has no characters for, so that ``print`` never fails.

    What we say is ASCII; names and messages of the user's may be anything.

    Example:
        >>> print(printable("gru"))
        gru

    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        return text


def _shown(name: str) -> str:
    return name or "(the model itself)"
