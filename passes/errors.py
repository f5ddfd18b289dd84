"""The errors that a rewrite or a rewritten model can raise."""

from __future__ import annotations

from dataclasses import dataclass


class RewriteError(RuntimeError):
    """A model cannot be rewritten, exported or proven equal; the message is a full report."""


class InputError(RewriteError, ValueError):
    """A rewritten module got an input that the original would not take either."""


class FixedSizeError(RewriteError):
    """A graph that was written out for the sizes of example inputs got others."""


class ReplacementError(RewriteError):
    """A replacement that a user gives builds nothing that could take a module's place."""


class PassError(RewriteError):
    """A pass broke one of its own conditions: a fault in the pass, not in the model."""


@dataclass(frozen=True)
class Decline:
    """Why one module was left as it is.

    Args:
        name: qualified name of the module in the user's model, ``""`` for the model itself.
        kind: class name of the module.
        reason: what stands in the way, and what to do about it.
        source: file and line of the user's code that makes the module, ``""`` if none was found.

    Example:
        >>> print(Decline("encoder.rnn", "LSTM", "is parametrized"))
        encoder.rnn (LSTM): is parametrized

    """

    name: str
    kind: str
    reason: str
    source: str = ""

    def __str__(self) -> str:
        made = f", made at {self.source}" if self.source else ""
        return f"{self.name or '(the model itself)'} ({self.kind}{made}): {self.reason}"


class DeclinedError(RewriteError):
    """At least one recurrent layer cannot be rewritten exactly; ``declines`` lists them all."""

    def __init__(
        self,
        declines: tuple[Decline, ...],
        advice: str = "Mend them, or pass strict=False to keep them as they are and have them reported.",
    ) -> None:
        self.declines = declines
        self.advice = advice
        lines = "\n".join(f"  - {decline}" for decline in declines)
        super().__init__(f"{len(declines)} module(s) cannot be rewritten exactly:\n{lines}\n{advice}")

    def __reduce__(self) -> tuple[type[DeclinedError], tuple[tuple[Decline, ...], str]]:
        return type(self), (self.declines, self.advice)
