"""What a violation is, and what judging an example may leave behind: nothing."""

from __future__ import annotations

import re
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from tests.fuzz.programs import FILE, Drawn, Program

#: What one example may take; it takes a tenth of a second.
SECONDS = 60.0
#: What judging says of an example that was not refused.
HELD = "held"


class Violation(AssertionError):  # noqa: N818 -- the word for it
    """Something that must not happen.

    Args:
        kind: what it is, in few words, the same for the same fault.
        details: with numbers.

    """

    def __init__(self, kind: str, details: str = "") -> None:
        super().__init__(f"{kind}: {details}" if details else kind)
        self.kind = kind


class _Hangs(BaseException):
    """An example took too long; no handler of errors may take it."""


@contextmanager
def judged(what: str) -> Iterator[None]:
    """Turn any error but ours into a violation, and one that takes too long."""

    def stop(*_: object) -> None:
        raise _Hangs

    timed = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    before = signal.signal(signal.SIGALRM, stop) if timed else None
    if timed:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            # What torch warns of is not what is tested.
            warnings.simplefilter("ignore")
            yield
    except _Hangs:
        raise Violation(f"{what}: takes more than {SECONDS} s") from None
    except (Violation, RewriteError):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        inside = next(
            (
                f"{each.filename.rpartition('/')[2]}:{each.name}"
                for each in reversed(traceback.extract_tb(error.__traceback__))
                if "/passes/" in each.filename or "/rewriter/" in each.filename
            ),
            frame.name,
        )
        raise Violation(f"{what}: raises {type(error).__name__} in {inside}", str(error)) from error
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def refusal(error: RewriteError) -> str:
    """Return the class of a refusal: its message without names and numbers."""
    text = re.sub(rf"{FILE}:\d+", "LINE", str(error).splitlines()[0])
    text = re.sub(r"'[^']*'|\b[hm]\d+\b|-?\d[\d.e+-]*|\([^()]*\)", "…", text)
    # What an error of sums begins with is always the same; behind it stands why.
    text = text.rpartition("of that change ….")[2].partition("Pass check_additivity")[0].strip()
    text = re.sub(r"^\w+…?: at \w+", "NAME: at ATOM", text)
    return f"refused, {type(error).__name__}: {text[:110]}"


def lines_named(error: RewriteError) -> set[int]:
    """Return the lines of the program that an error names."""
    return {int(each) for each in re.findall(rf"{FILE}:(\d+)", str(error))}


def names_a_place(error: RewriteError, program: Drawn) -> bool:
    """Whether an error names a line, a module or an operation of a program."""
    known = set(re.findall(r"self\.(\w+)", program.text)) | _called(program.text)
    return bool(lines_named(error) or known & _words(error)) or "the model itself" in str(error)


def _called(text: str) -> set[str]:
    return set(re.findall(r"\.(\w+)\(", text)) - {"double", "eval", "manual_seed", "to", "clone"}


def _words(error: RewriteError) -> set[str]:
    # Names of nodes have numbers behind them, and begin sentences.
    return {re.sub(r"_\d+$", "", each.lower()) for each in re.findall(r"\w+", str(error))}


def _owners_named(error: RewriteError, program: Program) -> set[int]:
    """Return the indices of what an error names: by lines, else by operations."""
    lines = lines_named(error)
    if not lines:
        words, text = _words(error), program.text.splitlines()
        lines = {k + 1 for k, line in enumerate(text) if _called(line) & words}
    named = {program.owners[line - 1] for line in lines if line <= len(program.owners)}
    return {each for each in named if each is not None}


def must_name(error: RewriteError, program: Program, *, culprit: bool) -> str:
    """Return the class of a refusal that is in order.

    Args:
        error: of ours.
        program: what was refused.
        culprit: whether what it names must be something without a rule.

    Raises:
        Violation: if all of the program is promised, or the error names nothing, or something else.

    """
    kind = refusal(error)
    if program.exact:
        raise Violation(f"what is promised is refused ({kind})", str(error)) from error
    if not names_a_place(error, program):
        raise Violation(f"names nothing ({kind})", str(error)) from error
    owners = [program.forms[k] for k in _owners_named(error, program)]
    if culprit and owners and all(each.exact for each in owners):
        raise Violation(f"names what is not at fault ({kind})", str(error)) from error
    return kind


def picture(space: ModuleType) -> Any:
    """Return all that a program made, as values that can be compared."""
    seen: dict[int, int] = {}
    found = {key: _seen(value, seen) for key, value in vars(space).items() if not key.startswith("__")}
    return found, torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.is_grad_enabled()


def _seen(value: Any, seen: dict[int, int]) -> Any:
    if isinstance(value, Tensor):
        values = value.detach().tolist() if value.layout == torch.strided else repr(value)
        grad = None if not value.is_leaf or value.grad is None else value.grad.tolist()
        return type(value), values, value.dtype, value.requires_grad, value._version, grad, value.is_leaf
    if isinstance(value, str | int | float | bool | type | ModuleType | torch.dtype | None):
        return repr(value)
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = len(seen)
    if isinstance(value, dict):
        return type(value), [(repr(key), _seen(each, seen)) for key, each in value.items()]
    if isinstance(value, list | tuple | set):
        return type(value), [_seen(each, seen) for each in value]
    if isinstance(value, FunctionType):
        cells = [_seen(each.cell_contents, seen) for each in value.__closure__ or ()]
        return value.__qualname__, id(value), cells
    if isinstance(value, nn.Module) or type(value).__module__ == "drawn_model":
        return type(value), id(value), _seen(vars(value), seen)
    return type(value)


def differences_of(before: Any, after: Any) -> str:
    """Return the names whose values differ, with what holds for all of the process."""
    names = [key for key in {**before[0], **after[0]} if before[0].get(key) != after[0].get(key)]
    parts = ("random state", "default dtype", "gradients enabled")
    return ", ".join(
        [*names, *(part for part, a, b in zip(parts, before[1:], after[1:], strict=True) if a != b)]
    )


def unchanged(space: ModuleType, before: Any, what: str) -> None:
    """Raise a violation if anything of the user's is not what it was.

    Args:
        space: the program, run.
        before: its picture.
        what: was done with it.

    """
    if (changed := differences_of(before, picture(space))) != "":
        raise Violation(f"{what} changes the user's {changed}")


#: Judges an example: returns what became of it, or raises a violation.
Judge = Callable[[Any], str]
