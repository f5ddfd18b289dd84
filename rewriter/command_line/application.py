"""The application ``rewriter`` and its options that all commands share."""

from __future__ import annotations

import typer

from rewriter.command_line.check import check
from rewriter.command_line.explain import explain
from rewriter.command_line.export import export, export_explainer
from rewriter.command_line.inspection import inspect
from rewriter.command_line.verification import verify

EXIT_CODES = "Exit codes: 0 it holds or is done, 1 it does not hold, 2 it cannot be asked or done."

application = typer.Typer(
    name="rewriter",
    help=f"Rewrite, prove, export and explain recurrent PyTorch models.\n\n{EXIT_CODES}",
    epilog="A model is package.module:factory, a .pt2 file of torch.export, or a .keras file.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command, name in (
    (inspect, "inspect"),
    (check, "check"),
    (export, "export"),
    (export_explainer, "export-explainer"),
    (verify, "verify"),
    (explain, "explain"),
):
    application.command(name)(command)


def run() -> None:
    """Run the command that the arguments of the process name."""
    application()
