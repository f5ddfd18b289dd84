"""Models as a command names them: a factory in a package, an exported program, a file of Keras."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import nn

from rewriter.command_line.failures import CommandError
from rewriter.command_line.programs.unasked import unasked
from rewriter.inputs import as_module
from rewriter.keras.file import load

_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}
_WAYS = (
    "give package.module:factory (what returns the model, or the model and example inputs), a .pt2 file of "
    "torch.export, or a .keras file"
)


class Named(NamedTuple):
    """A model, the example inputs that came with it, and whether it runs in any dtype: a program does not."""

    model: nn.Module
    example_inputs: Any = None
    any_dtype: bool = True


def load_model(name: str, *, trusted: bool = False) -> Named:
    """Return the model that a command names, in evaluation mode.

    Args:
        name: ``package.module:factory``, or the path of a ``.pt2`` or ``.keras`` file, or of a pickle.
        trusted: unpickle, which runs whatever code the file holds.

    Raises:
        CommandError: saying what was expected, and what came.

    Example:
        >>> load_model("torch.nn:Identity").model
        Identity()

    """
    path = Path(name)
    if path.suffix == ".pt2":
        return _of_program(_existing(path), trusted)
    if path.suffix == ".keras":
        return _of_keras(_existing(path), trusted)
    if path.suffix in _PICKLES:
        return _of_pickle(_existing(path), trusted)
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise CommandError(f"{name}: no model; {_WAYS}")
    return _of_factory(name, module, attribute)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CommandError(f"{path}: no such file")
    return path


def _of_factory(name: str, module: str, attribute: str) -> Named:
    here = str(Path.cwd())
    if here not in sys.path:
        # As `python -m` does: the user's package is where the user is.
        sys.path.insert(0, here)
    if module.startswith("."):
        raise CommandError(f"{name}: a relative name; give the package's whole name")
    try:
        with _going_on(f"{name}: importing {module}"):
            found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise CommandError(f"{name}: importing {module} failed: {error}") from error
        raise CommandError(f"{name}: no module {error.name} in this environment or in {here}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise CommandError(f"{name}: {module} has no {attribute}")
        found = getattr(found, part)
    if not isinstance(found, nn.Module) and callable(found):
        needed = _needed_arguments(found)
        if needed:
            raise CommandError(
                f"{name}: takes {', '.join(needed)}; name a function without arguments that builds the model"
            )
        with _going_on(name):
            found = found()
    model, example = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, nn.Module):
        raise CommandError(f"{name}: expected a torch.nn.Module, got {type(model).__name__}; {_WAYS}")
    return Named(model.eval(), example)


@contextmanager
def _going_on(what: str) -> Iterator[None]:
    """Refuse user code that ends the process: an exit code of its own would look like a verdict."""
    try:
        yield
    except SystemExit as error:
        raise CommandError(f"{what} ended with SystemExit({error.code}); no model came of it") from error


def _needed_arguments(factory: Any) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return []
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [each.name for each in parameters if each.default is each.empty and each.kind not in kinds]


@contextmanager
def _without_code(path: Path) -> Iterator[None]:
    """Let torch read tensors alone: a program may hold pickles, which run code when they are read."""
    plain = torch.load

    def load(*args: Any, **options: Any) -> Any:
        return plain(*args, **{**options, "weights_only": True})

    def refuse(*_: Any, **__: Any) -> Any:
        raise CommandError(
            f"{path}: holds pickled objects that may run code; --trust reads them all the same"
        )

    with mock.patch.object(torch, "load", load), mock.patch("pickle.loads", refuse):
        yield


def _read_unasked(path: Path) -> torch.export.ExportedProgram:
    found = unasked(path)
    if found is not None:
        raise CommandError(
            f"{path}: holds {found}, which may run code when it is read; --trust reads it all the same"
        )
    with _without_code(path):
        return torch.export.load(path)


def _of_program(path: Path, trusted: bool) -> Named:
    try:
        program = torch.export.load(path) if trusted else _read_unasked(path)
    except CommandError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        raise CommandError(
            f"{path}: no exported program that can be read: {type(error).__name__}: {' '.join(first)}"
        ) from error
    args, kwargs = program.example_inputs or ((), {})
    example: Any = kwargs if kwargs and not args else tuple(args)
    # Its mode is that in which it was exported.
    return Named(as_module(program), example or None, any_dtype=False)


def _of_keras(path: Path, trusted: bool) -> Named:
    return Named(load(path, trusted=trusted))


def _of_pickle(path: Path, trusted: bool) -> Named:
    if not trusted:
        raise CommandError(
            f"{path}: a pickle runs whatever code it holds when it is read; export the model with "
            "torch.export.save as .pt2, name a factory, or say --trust if you know where the file is from"
        )
    found = torch.load(path, map_location="cpu", weights_only=False)
    if not isinstance(found, nn.Module):
        raise CommandError(
            f"{path}: expected a pickled torch.nn.Module, got {type(found).__name__}; weights alone need the "
            "model's code: name a factory that loads them"
        )
    return Named(found.eval())
