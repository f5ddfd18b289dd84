"""The laws of the house, each as a function that returns the breaches it finds below a folder."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Breach = tuple[str, str]


def python_files(folder: Path) -> list[Path]:
    """Return all modules below a folder, however deep."""
    return sorted(folder.rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """Yield the names that a file imports, wherever in it, as dotted paths."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(file: Path, root: Path) -> str:
    """Return the dotted name of a file of the package ``root``."""
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(folder: Path, package: str) -> list[Breach]:
    """Return who in a folder imports a package."""
    return [
        (file.name, name)
        for file in python_files(folder)
        for name in imports(file)
        if name.split(".")[0] == package
    ]


def foreign_imports(folder: Path, allowed: set[str]) -> list[Breach]:
    """Return who in a folder imports what is neither Python's nor ``allowed``."""
    known = sys.stdlib_module_names | allowed
    return [
        (file.name, name)
        for file in python_files(folder)
        for name in imports(file)
        if name.split(".")[0] not in known
    ]


def foreign_at_the_top(folder: Path, allowed: set[str]) -> list[Breach]:
    """Return who in a folder imports, as it is imported, what is neither Python's nor ``allowed``."""
    found = []
    for file in python_files(folder):
        for node in ast.parse(file.read_text()).body:
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
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
        for imported in imports(file) if floor is not None else ():
            other = floor_of(imported, order)
            if imported.startswith(f"{root.name}.") and other is not None and other > (floor or 0):
                found.append((own, imported))
    return found


def in_circles(root: Path) -> set[str]:
    """Return the modules that import each other in a circle, and what imports those."""
    graph = {module_name(file, root): set(imports(file)) for file in python_files(root)}
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


def tables_of_names(folder: Path, names: Callable[[str], bool]) -> list[Breach]:
    """Return who holds a collection of names of operations: three at least, and most of its items.

    Args:
        folder: where to look.
        names: whether a string, or the last part of ``torch.name``, is the name of an operation.

    """
    found = []
    for file in python_files(folder):
        for node in ast.walk(ast.parse(file.read_text())):
            items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            written = [name for name in map(_written, items) if name is not None]
            known = [name for name in written if names(name)]
            if len(known) >= 3 and 2 * len(known) > len(items):
                found.append((file.relative_to(folder).as_posix(), ", ".join(known)))
    return found


def _written(node: ast.AST | None) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        # What Python itself calls is no operation of torch's.
        return None if node.value.startswith("__") else node.value
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in _SPACES:
        return node.attr
    return None


_SPACES = {"torch", "F", "operator", "Tensor", "torch.Tensor", "torch.nn.functional", "torch.special"}
