"""Give the calls in code that torch.fx cannot follow their rules, each time that the code runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from passes.errors import RewriteError
from passes.graph.writes import write_of
from passes.lowering.running_code import CallAtom, run_around, run_lowered
from rewriter.compiler.report import Report


def islands_of(model: nn.Module) -> list[str]:
    """Return the names of the modules of a decomposed model that are still the user's code."""
    try:
        return list(Report.of(model).islands)
    except RewriteError:
        return []


def may_write(model: nn.Module) -> bool:
    """Whether a decomposed model may write in place to what an atom takes or gives."""
    graph = model.graph.nodes if isinstance(model, fx.GraphModule) else ()
    return bool(islands_of(model)) or any(write_of(node) for node in graph)


def lowered_islands(
    model: nn.Module, names: list[str], call: Callable[[str], CallAtom]
) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Yield each island, and a forward for it that calls atoms.

    Args:
        model: a decomposed model, or a copy of one.
        names: of its islands.
        call: takes the name of an island and returns what calls its atoms.

    """
    modules = dict(model.named_modules())
    for name in names:
        # What is scripted has no code of Python's.
        if name in modules and not isinstance(modules[name], torch.jit.ScriptModule):
            yield modules[name], partial(_run, modules[name].forward, call(name))


def run_islands(names: list[str], run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a model that holds islands, and know what varies in all of it: what one keeps, another may find.

    Args:
        names: of its islands.
        run: the model.
        args: of the call.
        kwargs: of the call.

    """
    around = bool(names) and "" not in names
    return run_around(run, *args, **kwargs) if around else run(*args, **kwargs)


def _run(plain: Callable[..., Any], call: CallAtom, *args: Any, **kwargs: Any) -> Any:
    return run_lowered(plain, call, args, kwargs)
