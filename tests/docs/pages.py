"""Pages of the documentation: their blocks of code, and how one is run."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]*?) -->\n+)?"
    r"^(?P<indent> *)```(?P<kind>python|pycon)[^\n]*\n(?P<code>.*?)^ *```$"
    r"(?:\n+ *```text\n(?P<output>.*?)^ *```$)?",
    re.S | re.M,
)
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A block of Python in a page.

    Args:
        line: where it begins.
        code: a program, or an interactive session.
        output: what the block behind it says that the program prints, if there is one.
        reason: why it is not run, if it is not.

    """

    line: int
    code: str
    output: str | None
    reason: str | None


def blocks_of(text: str) -> list[Block]:
    """Return the blocks of Python of a page, in order."""
    return [
        Block(
            text.count("\n", 0, found.start("code")) + 1,
            re.sub(rf"^{found['indent']}", "", found["code"], flags=re.M),
            found["output"],
            found["reason"],
        )
        for found in _BLOCK.finditer(text)
    ]


def run(block: Block, names: dict[str, Any], page: str) -> None:
    """Run a block in the namespace of its page, and compare what it prints with what the page says.

    Raises:
        AssertionError: if it prints anything else.

    """
    if block.code.startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(block.code, names, page, page, block.line - 1)
        runner = doctest.DocTestRunner(optionflags=_OPTIONS, verbose=False)
        said = io.StringIO()
        runner.run(test, out=said.write, clear_globs=False)
        names.update(test.globs)
        assert not runner.failures, said.getvalue()
        return
    printed = io.StringIO()
    # Lines of the page, in whatever goes wrong.
    code = compile("\n" * (block.line - 1) + block.code, page, "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    if block.output is not None:
        same = doctest.OutputChecker().check_output(block.output, printed.getvalue(), _OPTIONS)
        assert same, f"{page}:{block.line} printed\n{printed.getvalue()}"
