"""The laws of the house, each as a function that returns the breaches it finds below a folder."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

Breach = tuple[str, str]


def python_files(folder: Path) -> list[Path]:
    """Return all modules below a folder, however deep."""
    return sorted(folder.rglob("*.py"))


def imports(file: Path, root: Path) -> Iterator[str]:
    """Yield the names that a file of the package ``root`` imports, wherever and however, as dotted paths."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute("." * node.level + (node.module or ""), file, root)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in _IMPORTERS and node.args:
            # Of a name that is put together, the beginning.
            text = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield _absolute(text.value, file, root).rstrip(".")


_IMPORTERS = {"import_module", "__import__"}


def _absolute(name: str, file: Path, root: Path) -> str:
    """Return what a name means in a file: each dot in front but the first is one folder up."""
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    folder = file.parent.relative_to(root.parent).parts
    return ".".join([*folder[: len(folder) - level + 1], *filter(None, [name[level:]])])


def module_name(file: Path, root: Path) -> str:
    """Return the dotted name of a file of the package ``root``."""
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(folder: Path, package: str) -> list[Breach]:
    """Return who in a folder imports a package."""
    return [
        (file.name, name)
        for file in python_files(folder)
        for name in imports(file, folder)
        if name.split(".")[0] == package
    ]


def foreign_imports(folder: Path, allowed: set[str]) -> list[Breach]:
    """Return who in a folder imports what is neither Python's nor ``allowed``."""
    known = sys.stdlib_module_names | allowed
    return [
        (file.name, name)
        for file in python_files(folder)
        for name in imports(file, folder)
        if name.split(".")[0] not in known
    ]


def foreign_at_the_top(folder: Path, allowed: set[str]) -> list[Breach]:
    """Return who in a folder imports, as it is imported, what is neither Python's nor ``allowed``."""
    found = []
    for file in python_files(folder):
        for node in ast.parse(file.read_text()).body:
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            roots = {name.split(".")[0] for name in names}
            found += [(file.name, name) for name in roots - sys.stdlib_module_names - allowed]
    return found


def floor_of(name: str, order: Sequence[str]) -> int | None:
    """Return the place in ``order`` of the longest room that a dotted name lies in, None if in none."""
    rooms = [room for room in order if f"{name}.".startswith(f"{room}.")]
    return order.index(max(rooms, key=len)) if rooms else None


def upward_imports(root: Path, order: Sequence[str]) -> list[Breach]:
    """Return who imports a room that stands above its own, and which file stands in no room.

    Args:
        root: a package.
        order: rooms, dotted names of folders or files, the lowest first; one within another stands by itself.

    """
    found = []
    for file in python_files(root):
        own = module_name(file, root)
        floor = floor_of(own, order)
        if floor is None and own != root.name:
            found.append((own, "stands in no room"))
        for imported in imports(file, root) if floor is not None else ():
            other = floor_of(imported, order)
            if imported.startswith(f"{root.name}.") and other is not None and other > (floor or 0):
                found.append((own, imported))
    return found


def in_circles(root: Path) -> set[str]:
    """Return the modules that import each other in a circle, and what imports those."""
    graph = {module_name(file, root): set(imports(file, root)) for file in python_files(root)}
    while ready := {name for name, needs in graph.items() if not needs & graph.keys() - {name}}:
        graph = {name: needs for name, needs in graph.items() if name not in ready}
    return set(graph)


def long_files(folder: Path, most: int) -> list[str]:
    """Return the files that have more lines."""
    return [file.name for file in python_files(folder) if len(file.read_text().splitlines()) > most]


def full_folders(root: Path, most: int) -> list[str]:
    """Return the folders that hold more modules, the file that makes a folder a package not counted."""
    folders = {file.parent for file in python_files(root)}
    return sorted(
        folder.name
        for folder in folders
        if len([each for each in folder.glob("*.py") if each.stem != "__init__"]) > most
    )


def names_of_operations(folder: Path, names: Callable[[str], bool]) -> dict[str, set[str]]:
    """Return the names of operations that each file knows, in whatever form it holds them, if it knows any.

    A call of an operation, and what text says of one, are no knowledge of its name. A string is if it is
    nothing but names, and so is ``torch.name`` that is not called.

    Args:
        folder: where to look.
        names: whether a string, or the last part of ``torch.name``, is the name of an operation.

    """
    found = {}
    for file in python_files(folder):
        known: set[str] = set()
        tree = ast.parse(file.read_text())
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if id(node) not in called:
                known |= {name for name in _written(node, names) if names(name)}
        if known:
            found[file.relative_to(folder).as_posix()] = known
    return found


def _written(node: ast.AST, names: Callable[[str], bool]) -> list[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        words = re.split(r"[\s,;|/]+", node.value.strip())
        # What Python itself calls is no operation of torch's.
        words = [word for word in words if not word.startswith("__")]
        return words if all(map(names, words)) else []
    if isinstance(node, ast.Attribute):
        dotted = ast.unparse(node)
        space = next((each for each in _SPACES if dotted.startswith(f"{each}.")), None)
        # Of an operator of aten the overload is no part of the name.
        name = "" if space is None else dotted.removeprefix(f"{space}.").split(".")[0]
        # A type or a device of torch's is called as an operation is.
        other = getattr(torch, name, torch.sum) if space == "torch" else torch.sum
        return [name] if callable(other) and not isinstance(other, type) else []
    return []


# The longest first.
_SPACES = sorted(
    {
        *("torch", "F", "operator", "Tensor", "torch.Tensor", "torch.nn.functional", "nn.functional"),
        *("functional", "torch.special", "special", "torch.linalg", "linalg", "torch.fft", "fft"),
        *("torch.ops.aten", "ops.aten", "aten", "torch._C._nn"),
    },
    key=len,
    reverse=True,
)
