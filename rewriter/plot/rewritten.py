"""A model before and after the rewrite, coloured by how explainers treat each part."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import fx, nn

from passes.leaves import Atom, Layout
from passes.operations.names import name_of_call
from passes.operations.table import rule_of_module
from passes.recurrent.recurrence import Recurrence
from rewriter.compiler.report import Report
from rewriter.plot.style import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: How a part is explained, and its colour.
LINEAR, RULE, SWEPT, CODE, NONE = (
    "linear: multipliers pass through",
    "atom: an exact rule",
    "recurrence: swept back in time",
    "your code: rules while it runs",
    "no exact rule",
)
COLOURS = {LINEAR: "#e3e3e3", RULE: "#a6d8ff", SWEPT: "#d5c8f5", CODE: "#ffe2a0", NONE: "#ff9db9"}
_HEIGHT, _GAP = 0.8, 0.2
# Beside each other in a row.
_KINDS = 4


@dataclass
class Part:
    """A module or call of the user's model, and what it has become.

    Args:
        name: of the module or the node.
        kind: class of the module, or what is called.
        became: how often there is what, and how that is explained, by kind.

    """

    name: str
    kind: str
    became: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, kind: str, how: str) -> None:
        """Count one more."""
        self.became[kind, how] = self.became.get((kind, how), 0) + 1

    @property
    def label(self) -> str:
        """Name and kind, once if a call is named by what it calls."""
        name = self.name or "the model"
        return name if name == self.kind else f"{name}: {self.kind}"

    @property
    def boxes(self) -> list[tuple[str, str]]:
        """Label and treatment of what there is room for: of many kinds those of one treatment together."""
        kinds = [(kind, how, count) for (kind, how), count in self.became.items()]
        if len(kinds) > _KINDS:
            treatments = dict.fromkeys(how for _, how, _ in kinds)
            of_each = {how: [each for each in kinds if each[1] == how] for how in treatments}
            kinds = [
                (", ".join(kind for kind, _, _ in of), how, sum(count for _, _, count in of))
                for how, of in of_each.items()
            ]
        return [(kind if count == 1 else f"{count} {kind}", how) for kind, how, count in kinds]


def rewrite(
    model: nn.Module, decomposed: nn.Module, *, max_display: int = 30, ax: Axes | None = None
) -> Axes:
    """Draw what each part of a model has become, coloured by how explainers treat it.

    On the left are the modules and calls of the model, in the order in which they run where there is a graph;
    on the right, in the same row, what they became. Indexing and layouts are left out: they move numbers.

    Args:
        model: as it was.
        decomposed: what :func:`rewriter.decompose` made of it.
        max_display: parts at most; how many are left out is said.
        ax: to draw in.

    Raises:
        RewriteError: if ``decomposed`` carries no report.

    Example:
        >>> import pytest; _ = pytest.importorskip("matplotlib")
        >>> from rewriter.compiler.decompose import decompose
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
        >>> ax = rewrite(model, decompose(model))
        >>> [text.get_text() for text in ax.texts]
        ['before', 'after', '0: Linear', 'Linear', '1: Tanh', 'TanhAtom']

    """
    parts = parts_of(model, decomposed)
    shown, left = parts[:max_display], len(parts) - max_display
    ax = axes_of(ax, (8, 0.42 * (len(shown) + 1 + (left > 0)) + 1.0))
    ax.text(0.2, 1, "before", ha="center", weight="bold")
    ax.text(0.7, 1, "after", ha="center", weight="bold")
    for row, part in enumerate(shown):
        _box(ax, 0.01, -row, 0.38, part.label, "#ffffff")
        width = 0.55 / len(part.boxes)
        for k, (label, how) in enumerate(part.boxes):
            _box(ax, 0.44 + k * width, -row, width - 0.01, label, COLOURS[how])
        ax.plot((0.395, 0.435), (0.5 - row,) * 2, color="#777777", marker=">", markevery=[1], markersize=4)
    if left > 0:
        ax.text(0.2, -len(shown) + 0.4, f"… and {left} more", ha="center", va="center", fontsize=9)
    used = [how for how in COLOURS if any(how == each for part in parts for _, each in part.became)]
    for how in used:
        ax.bar(0, 0, color=COLOURS[how], label=how)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=8, frameon=False)
    ax.set(xlim=(0, 1), ylim=(-len(shown) - (left > 0) + 0.9, 1.6))
    ax.axis("off")
    return ax


def parts_of(model: nn.Module, decomposed: nn.Module) -> list[Part]:
    """Return the parts of a model with what they became.

    Example:
        >>> from rewriter.compiler.decompose import decompose
        >>> model = nn.Sequential(nn.Tanh())
        >>> [(part.kind, part.became) for part in parts_of(model, decompose(model))]
        [('Tanh', {('TanhAtom', 'atom: an exact rule'): 1})]

    """
    report = Report.of(decomposed)
    modules = dict(model.named_modules(remove_duplicate=False))
    rewritten = {layer.name for layer in report.layers} | {each.name for each in report.operations}
    rewritten &= modules.keys()
    parts: dict[str, Part] = {}
    for name, kind, how, is_module in _pieces(decomposed, report):
        owner = _owner(name, modules if is_module else rewritten, "." if is_module else "_")
        if owner is None:
            owner, kind_before = name, next((o.operation for o in report.operations if o.name == name), kind)
        else:
            kind_before = type(modules[owner]).__name__
        parts.setdefault(owner, Part(owner, kind_before)).add(kind, how)
    return list(parts.values())


def _pieces(decomposed: nn.Module, report: Report) -> Iterator[tuple[str, str, str, bool]]:
    """Yield name, kind and treatment of what the rewritten model consists of, and whether it is a module."""
    modules = dict(decomposed.named_modules())
    uncovered = {each.name for each in report.uncovered} | {each.name for each in report.declines}
    if isinstance(decomposed, fx.GraphModule):
        for node in decomposed.graph.nodes:
            if node.op == "call_module":
                module = modules[node.target]
                if not isinstance(module, Layout):
                    yield (
                        node.target,
                        type(module).__name__,
                        _how(node.target, module, report, uncovered),
                        True,
                    )
            elif node.op in ("call_function", "call_method") and node.target is not operator.getitem:
                called = name_of_call(node.target) or str(node.target)
                yield node.name, called, NONE if node.name in uncovered else LINEAR, False
        return
    inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Recurrence))
    for name, module in modules.items():
        leaf = not any(True for _ in module.children()) or isinstance(module, Recurrence)
        if name in report.islands and not leaf:
            yield name, type(module).__name__, CODE, True
        if leaf and not isinstance(module, Layout) and not name.startswith(inside or ("\0",)):
            yield name, type(module).__name__, _how(name, module, report, uncovered), True


def _how(name: str, module: nn.Module, report: Report, uncovered: set[str]) -> str:
    if name in uncovered or any(f"{name}.".startswith(f"{each}.") for each in uncovered if each):
        return NONE
    if isinstance(module, Recurrence):
        return SWEPT
    if isinstance(module, Atom) or rule_of_module(module) is not None:
        return RULE
    if name in report.islands:
        return CODE
    return LINEAR


def _owner(name: str, modules: Collection[str], joint: str) -> str | None:
    """Return the longest name of a module that ``name`` is, or lies in."""
    # A node's name begins with an underscore where a module's begins with a digit.
    place = f"{name}{joint}".lstrip("_")
    found = [
        each
        for each in modules
        if each and place.startswith(f"{each.replace('.', joint)}{joint}".lstrip("_"))
    ]
    if not found and joint == "." and (not name or len(modules) == 1):
        return ""
    return max(found, key=len, default=None)


def _box(ax: Axes, x: float, y: float, width: float, label: str, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    box = FancyBboxPatch(
        (x, y + _GAP / 2),
        width,
        _HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.01",
        facecolor=colour,
        edgecolor="#777777",
        linewidth=0.6,
        mutation_aspect=20,
    )
    ax.add_patch(box)
    room = int(width * 75)
    shown = label if len(label) <= room else f"{label[: max(1, room - 1)]}…"
    ax.text(
        x + width / 2, y + 0.5, shown.replace("$", r"\$"), ha="center", va="center", fontsize=8, clip_on=True
    )
