"""What a file of ``torch.export`` would have torch run while it is read, found before it is read.

torch evaluates the expressions of sizes in a program as Python, looks the functions that its nodes call up by
attributes, and loads pickles and compiled code that lie beside them.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._sympy import functions

# Calls in the expressions of sizes: sympy's, and torch's own of sizes.
_FUNCTIONS = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "ceiling", "floor"),
    *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
    *("And", "Or", "Not", "Xor", "Piecewise", "ExprCondPair", "true", "false", "oo", "I"),
    *functions.__all__,
}
_OPERATORS = {
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "getitem"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "not_", "invert", "lshift", "rshift"),
}
_NODES = (
    *(ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.Tuple),
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop),
)
# Symbols of sizes, as torch names them.
_SYMBOL = re.compile(r"[a-z]+\d+")
_CALLED = (torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator)


def unasked(path: Path) -> str | None:
    """Return what a program would have run while it is read, None if there is nothing.

    Args:
        path: a ``.pt2`` file.

    Raises:
        zipfile.BadZipFile: if it is none.
        ValueError: if a description in it cannot be read.

    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "/aotinductor/" in name or name.endswith((".so", ".o", ".dll", ".cubin")):
                return f"compiled code, {name}"
            if "custom_obj" in name:
                return f"a pickled object, {name}"
            if name.endswith(".json"):
                for found in _found(json.loads(archive.read(name))):
                    return found
    return None


def _found(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _found(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if name == "expr_str" and not is_expression(each):
                yield f"the size {each!r}"
            elif name == "target" and isinstance(each, str) and not is_operation(each):
                yield f"a call of {each}"
            else:
                yield from _found(each)
    elif isinstance(value, str) and "default_factory_module" in value:
        # Descriptions of containers are JSON within JSON.
        yield "a dictionary whose default is made by a function that it names"


def is_expression(text: Any) -> bool:
    """Whether a text is arithmetic of sizes and nothing else.

    Example:
        >>> is_expression("Mul(Integer(4), Symbol('s7', integer=True))"), is_expression("exec('1')")
        (True, False)

    """
    if not isinstance(text, str):
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_arithmetic(each) for each in ast.walk(tree))


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name), args=args):
            # sympy makes of a text what it says: only names of symbols may be texts.
            return name in _FUNCTIONS and (name == "Symbol" or not any(map(_is_text, args)))
        case ast.Call():
            return False
        case ast.Name(id=name):
            return name in _FUNCTIONS or bool(_SYMBOL.fullmatch(name))
        case ast.Constant(value=value):
            return isinstance(value, int | float) or bool(_SYMBOL.fullmatch(str(value)))
    return isinstance(node, _NODES)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_operation(target: str) -> bool:
    """Whether what a node calls is an operation of torch, or arithmetic of Python's.

    Example:
        >>> [is_operation(each) for each in ("torch.ops.aten.add.Tensor", "torch.os.system", "_operator.add")]
        [True, False, True]

    """
    first, *names = target.split(".")
    if first == "math":
        return len(names) == 1 and callable(getattr(math, names[0], None))
    if first == "_operator":
        return len(names) == 1 and names[0] in _OPERATORS and hasattr(operator, names[0])
    if first != "torch":
        # torch leaves it the text that it is, unless it is an extension's.
        return not first.startswith("#")
    if len(names) == 1:
        return names[0].startswith("sym_") and hasattr(torch, names[0])
    found: Any = torch
    for name in names:
        found = getattr(found, name, None)
    return isinstance(found, _CALLED)
