"""Programs that define a model and its data: drawn line by line, printed as they run."""

from __future__ import annotations

import linecache
import sys
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.fuzz.forms.form import Form, Kinds, written

FILE = "drawn_model.py"
_NAME = "drawn_model"
_IMPORTS = """\
import dataclasses
import functools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
"""
SAMPLES, REFERENCES = 3, 2
# In another order, and one alone: rows of samples first, which are less often all zero.
_SOME_ROWS = ([2, 1, 0, 4], [1])
# What a program computes on the way stays that small, so that rounding does.
_LARGEST, _ELEMENTS, _RANK = 1e3, 48, 4
# Zeros are positive: at the other zero the signs of some functions jump, although no number changes.
_DATA = ("", ".round() + 0.0", " * 3", ".relu()")
_BACKGROUNDS = ("", " * 0 + 0.0", ".round() + 0.0")


@dataclass(frozen=True)
class Drawn:
    """A program.

    Args:
        text: its code, which makes ``model``, and ``x`` and ``background``, lists of tensors.
        names: what it is made of.

    """

    text: str
    names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"\n{self.text}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # So that Hypothesis, too, prints what runs.
        printer.text(repr(self))

    def build(self) -> Any:
        """Run the code as a module of its own; each run makes everything anew."""
        linecache.cache[FILE] = (len(self.text), None, self.text.splitlines(keepends=True), FILE)
        module = types.ModuleType(_NAME)
        sys.modules[_NAME] = module
        exec(compile(self.text, FILE, "exec"), module.__dict__)
        return module


@dataclass(frozen=True, repr=False)
class Program(Drawn):
    """A model of drawn lines.

    Args:
        forms: the kinds of its lines.
        owners: the index among ``forms`` of each line of the text, None for what all programs have.
        output: which part of what it returns is explained.
        ignores: whether the model does not look at the last feature of its first input.
        couples_rows: whether a row of what it computes hangs on other rows.

    """

    forms: tuple[Form, ...]
    owners: tuple[int | None, ...]
    output: str | int | None
    ignores: bool
    couples_rows: bool

    @property
    def exact(self) -> bool:
        """Whether all that it does is promised to have a rule."""
        return all(each.exact for each in self.forms)

    @property
    def unstable(self) -> bool:
        """Whether it is no function of the rows."""
        return self.couples_rows or any(each.unstable for each in self.forms)


class _Writer:
    """Writes a program line by line, and runs each line as soon as it is written."""

    def __init__(self, draw: st.DrawFn, names: Sequence[str], values: Sequence[Tensor]) -> None:
        self.draw = draw
        self.variables = dict(zip(names, values, strict=True))
        self.model = nn.Module()
        self.space: dict[str, Any] = {"self": self.model, "torch": torch}
        exec(_IMPORTS, self.space)
        self.model.eval()
        self.parts: list[tuple[Form, str, str, str]] = []
        self.couples_rows = False

    def add(self, form: Form) -> None:
        """Write a line of a kind, if it runs on what there is."""
        operands = [name for name, value in self.variables.items() if value.dim() in form.ranks]
        if not operands:
            return
        a = self.draw(st.sampled_from(operands[::-1]))
        shape = tuple(self.variables[a].shape)
        alike = [name for name, value in self.variables.items() if value.shape == self.variables[a].shape]
        number = len(self.parts) + 1
        names = {
            "a": a,
            "b": self.draw(st.sampled_from(alike[::-1])),
            "c": self.draw(st.sampled_from(list(self.variables))),
            "new": f"h{number}",
            "m": f"m{number}",
        }
        # One text, so that what is drawn for one part stands in the others, too.
        text = form.text if "{new}" in form.text else f"{{new}} = {form.text}"
        parts = written(self.draw, "\0".join((form.top, form.init, text)), names, shape)
        top, init, body = parts.split("\0")
        rows = SAMPLES + REFERENCES
        value = self._run(f"{top}\n{init}", body, names["new"], list(range(rows)))
        if value is None:
            return
        if not all(
            (apart := self._run(f"{top}\n{init}", body, names["new"], some)) is not None
            and _equal(apart, value[some])
            for some in _SOME_ROWS
        ):
            if form.exact:
                # Explained is what each row gives by itself.
                return
            self.couples_rows = True
        self.variables[names["new"]] = value
        self.parts.append((form, top, init, body))

    def _run(self, begin: str, body: str, name: str, rows: list[int]) -> Tensor | None:
        """Run a line on some rows; None if torch does not take it, or the result is nothing to go on with."""
        space = {**self.space, **{key: value[rows] for key, value in self.variables.items()}}
        torch.manual_seed(len(self.parts))
        try:
            exec(begin, space)
            self.model.double()
            self.model.eval()
            exec(body, space)
            value = space[name]
        except Exception:
            return None
        if not (isinstance(value, Tensor) and value.dtype == torch.float64):
            return None
        value = value.detach().clone()
        if not (
            2 <= value.dim() <= _RANK and value.shape[0] == len(rows) and 0 < value[0].numel() <= _ELEMENTS
        ):
            return None
        return value if bool((value.abs() < _LARGEST).all()) else None


def _equal(a: Tensor, b: Tensor) -> bool:
    # Other rows are computed in another order at most.
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def _data_lines(shapes: Sequence[tuple[int, ...]], data: str, zero: str, same: bool, seed: int) -> list[str]:
    def tensors(rows: int, change: str) -> str:
        each = [f"torch.randn({(rows, *shape)}, dtype=torch.float64){change}" for shape in shapes]
        return f"[{', '.join(each)}]"

    lines = [
        f"torch.manual_seed({seed + 1})",
        f"x = {tensors(SAMPLES, data)}",
        f"background = {tensors(REFERENCES, zero)}",
    ]
    if same:
        lines.append("for each, reference in zip(x, background):\n    each[0] = reference[0]")
    return lines


def _values(lines: Sequence[str]) -> list[Tensor]:
    space: dict[str, Any] = {"torch": torch}
    exec("\n".join(lines), space)
    return [torch.cat(each) for each in zip(space["x"], space["background"], strict=True)]


@st.composite
def programs(draw: st.DrawFn, kinds: Kinds, most: int = 5, core: Kinds | None = None) -> Program:
    """Draw a program.

    Args:
        draw: Hypothesis gives it.
        kinds: of lines to choose from.
        most: the largest number of lines.
        core: kinds of lines of which there is at least one.

    """
    count = draw(st.integers(1, most))
    chosen = [draw(st.sampled_from(kinds.forms)) for _ in range(count)]
    if core:
        chosen.insert(draw(st.integers(0, len(chosen))), draw(st.sampled_from(core.forms)))
    sequence = draw(st.integers(0, 3)) < 3
    size = st.integers(1, 4)
    shape = (draw(size), draw(size)) if sequence else (draw(size),)
    two, ignores = draw(st.integers(0, 5)) == 5, draw(st.integers(0, 3)) == 3
    shapes = [shape] * (2 if two else 1)
    given = [(*each[:-1], each[-1] + 1) if ignores and not k else each for k, each in enumerate(shapes)]
    seed = draw(st.integers(0, 99))
    data = _data_lines(
        *(given, draw(st.sampled_from(_DATA)), draw(st.sampled_from(_BACKGROUNDS))),
        *(draw(st.integers(0, 3)) == 3, seed),
    )
    names = ["x", "z"][: len(shapes)]
    values = [each[..., : size[-1]] for each, size in zip(_values(data), shapes, strict=True)]
    with warnings.catch_warnings(), torch.random.fork_rng(), torch.no_grad():
        # What torch warns of is not what is tested.
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        writer = _Writer(draw, names, values)
        for form in chosen:
            writer.add(form)
    returned = draw(st.sampled_from(["tensor", "tensor", "all", "dict", "tuple", "wrapped"]))
    return _assembled(writer, names, ignores, returned, seed, data)


def _assembled(
    writer: _Writer, names: list[str], ignores: bool, returned: str, seed: int, data: list[str]
) -> Program:
    lines: list[str] = []
    owners: list[int | None] = []

    def put(text: str, indent: int = 0, owner: int | None = None) -> None:
        for line in text.splitlines():
            lines.append(f"{' ' * indent}{line}" if line else "")
            owners.append(owner)

    put(f"{_IMPORTS}\n")
    for k, (_, top, _, _) in enumerate(writer.parts):
        put(f"\n{top}\n" if top else "", 0, k)
    put("\nclass Model(nn.Module):\n    def __init__(self):\n        super().__init__()")
    for k, (_, _, init, _) in enumerate(writer.parts):
        put(init, 8, k)
    put(f"\n    def forward(self, {', '.join(names)}):")
    put("        x = x[..., :-1]" if ignores else "")
    for k, (_, _, _, body) in enumerate(writer.parts):
        put(body, 8, k)
    every = list(writer.variables)
    last = f"{every[-1]}.flatten(1)"
    output: str | int | None = None
    if returned == "all":
        last = f"torch.cat([{', '.join(f'{name}.flatten(1)' for name in every)}], 1)"
    elif returned == "dict":
        last, output = f"{{'rest': [{every[0]}], 'out': {last}}}", "out"
    elif returned == "tuple":
        last, output = f"({last}, {every[0]})", 0
    put(f"        return {last}\n\n\n")
    made = "nn.Sequential(Model(), nn.Tanh())" if returned == "wrapped" and len(names) == 1 else "Model()"
    put(f"torch.manual_seed({seed})\nmodel = {made}.double().eval()")
    put("\n".join(data))
    chosen = tuple(form for form, *_ in writer.parts)
    found = tuple(each.name for each in chosen)
    text = "\n".join(lines) + "\n"
    return Program(text, found, chosen, tuple(owners), output, ignores, writer.couples_rows)
