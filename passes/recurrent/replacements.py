"""What torch's recurrent layers and cells become, and the reasons to leave one as it is."""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from passes.errors import PassError
from passes.recurrent.cell_layers import STAND_INS as CELL_STAND_INS
from passes.recurrent.cell_layers import build_cell_stand_in
from passes.recurrent.kernels import fused_call
from passes.recurrent.layers import STAND_INS as SEQUENCE_STAND_INS
from passes.recurrent.layers import build_sequence_stand_in
from passes.replacement import Replacement
from passes.stand_in import StandIn

_NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
# What a subclass may define without changing what the layer computes.
_HARMLESS = {
    "__init__", "forward", "reset_parameters", "extra_repr", "__repr__", "__module__", "__doc__",
    "__annotations__", "__constants__", "__dict__", "__weakref__", "__firstlineno__",
    "__static_attributes__", "__qualname__", "__orig_bases__", "__parameters__", "__annotate__",
    "__annotate_func__", "__annotations_cache__", "__classcell__",
}  # fmt: skip


class RecurrentReplacement(Replacement):
    """What layers and cells share.

    Args:
        split: one Linear per gate instead of the fused ones.

    """

    bases: tuple[type[nn.Module], ...]

    def __init__(self, *, split: bool = False) -> None:
        self.split = split

    def matches(self, module: nn.Module) -> bool:
        """Whether ``module`` is one of torch's recurrent modules, not rewritten yet."""
        return isinstance(module, self.bases) and not isinstance(module, StandIn)

    def decline(self, module: nn.Module) -> str | None:
        """Return the first obstacle."""
        base = next((base for base in self.bases if isinstance(module, base)), None)
        if base is None:
            return "has no rule"
        if type(module).__module__.startswith("torch.ao."):
            return _QUANTISED
        if parametrize.is_parametrized(module):
            return _parametrized(module)
        return _without_parameters(module) or _foreign(module, base)


class SequenceReplacement(RecurrentReplacement):
    """``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``.

    Example:
        >>> SequenceReplacement().decline(nn.GRU(3, 2)) is None
        True

    """

    bases = tuple(SEQUENCE_STAND_INS)

    def build(self, module: nn.Module, name: str) -> nn.Module:
        """Return the stand-in for the layer."""
        return build_sequence_stand_in(cast("nn.RNNBase", module), _shown(module, name), split=self.split)


class CellReplacement(RecurrentReplacement):
    """``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell``.

    Example:
        >>> CellReplacement().matches(nn.GRUCell(3, 2))
        True

    """

    bases = tuple(CELL_STAND_INS)

    def build(self, module: nn.Module, name: str) -> nn.Module:
        """Return the stand-in for the cell."""
        return build_cell_stand_in(cast("nn.RNNCellBase", module), _shown(module, name), split=self.split)


class Refusal(Replacement):
    """Replaces nothing: it declines whatever it matches."""

    def matches(self, module: nn.Module) -> bool:
        """Whether there is a reason to decline ``module``."""
        return self.decline(module) is not None

    def build(self, module: nn.Module, name: str) -> nn.Module:
        """Raise PassError: every match is declined."""
        raise PassError(f"{type(self).__name__} rewrites nothing, asked for {name}")


class UnsupportedLayers(Refusal):
    """Recurrent modules that no rewrite can serve."""

    def decline(self, module: nn.Module) -> str | None:
        """Return what kind of module it is, and what to do."""
        if isinstance(module, StandIn):
            return None
        if isinstance(module, torch.jit.ScriptModule):
            scripted = getattr(module, "original_name", "") in _NAMES
            return (
                "is a scripted module, which cannot be taken apart; rewrite the Python model that it was "
                "scripted from, before torch.jit.script"
                if scripted
                else None
            )
        if type(module).__module__.startswith("torch.ao.") and type(module).__name__ in _NAMES:
            return _QUANTISED
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            return (
                f"{type(module).__name__} derives from a torch base class, and no rule knows its algebra; "
                f"derive it from nn.Module: then its own code is rewritten"
            )
        return None


class FusedCalls(Refusal):
    """Modules of the user's whose own code calls a recurrent kernel such as ``torch.lstm``."""

    def decline(self, module: nn.Module) -> str | None:
        """Return which kernel is called, and where."""
        called = fused_call(cast("Hashable", type(module)))
        return called and f"{called}, which cannot be rewritten; call a layer of torch.nn's in its place"


_QUANTISED = (
    "is quantised: its arithmetic has no exact rewrite; rewrite the float model that it was made of, before "
    "torch.ao.quantization"
)
# What takes a weight apart, by what it leaves behind of it, and the call that puts it together again.
_UNDONE = {
    "_mask": "torch.nn.utils.prune.remove",
    "_g": "torch.nn.utils.remove_weight_norm",
    "_u": "torch.nn.utils.remove_spectral_norm",
}


def recurrent_replacements(*, split: bool = False) -> list[Replacement]:
    """Return what may happen to recurrent modules, in the order in which it is tried."""
    return [SequenceReplacement(split=split), CellReplacement(split=split), UnsupportedLayers(), FusedCalls()]


def _shown(module: nn.Module, name: str) -> str:
    return name or f"the model itself ({type(module).__name__})"


def _without_parameters(module: nn.Module) -> str | None:
    names = (
        [name for group in module._all_weights for name in group]
        if isinstance(module, nn.RNNBase)
        else ["weight_ih", "weight_hh"]
    )
    missing = [name for name in names if not isinstance(module._parameters.get(name), nn.Parameter)]
    if not missing:
        return None
    calls = "; ".join(_undoing(module, name) for name in missing)
    return (
        f"{', '.join(missing)} is not a plain nn.Parameter of the layer, but computed anew in each forward "
        f"pass; keep the numbers that it has now, layer being this module: {calls}"
    )


def _undoing(module: nn.Module, name: str) -> str:
    left = {**module._parameters, **module._buffers}
    call = next((call for end, call in _UNDONE.items() if name + end in left), None)
    if call is not None:
        return f"{call}(layer, {name!r})"
    return f"w = layer.{name}; del layer.{name}; layer.{name} = torch.nn.Parameter(w.detach())"


def _parametrized(module: nn.Module) -> str:
    names = list(cast("nn.ModuleDict", module.parametrizations))
    calls = "; ".join(
        f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r}, leave_parametrized=True)"
        for name in names
    )
    return (
        f"is parametrized: {', '.join(names)} is computed anew in each forward pass; keep the numbers that "
        f"it has now, layer being this module: {calls}"
    )


def _foreign(module: nn.Module, base: type[nn.Module]) -> str | None:
    """Say what a subclass changes beyond wrapping ``forward``."""
    if "forward" in module.__dict__:
        return (
            "its forward was replaced on the instance; del layer.forward, and put what it adds into a module "
            "around the layer"
        )
    own = type(module).__mro__[: type(module).__mro__.index(base)]
    overridden = sorted(
        name for cls in own for name in vars(cls) if hasattr(base, name) and name not in _HARMLESS
    )
    if overridden:
        return (
            f"{type(module).__name__} overrides {', '.join(overridden)} of nn.{base.__name__}, which may "
            "change what it computes; leave them to torch, and put what they add into a module around the "
            "layer"
        )
    for cls in own:
        forward = vars(cls).get("forward")
        code = getattr(inspect.unwrap(forward), "__code__", None) if forward is not None else None
        if forward is not None and (code is None or "super" not in code.co_names):
            return (
                f"{cls.__name__} has a forward of its own that does not go through super().forward(...), "
                f"so it is not an nn.{base.__name__} any more; derive it from nn.Module: then its own code "
                "is rewritten"
            )
    clash = sorted(name for name in module._modules if name in ("begin", "end") or name.startswith("layer"))
    if clash:
        return f"its submodule {', '.join(clash)} has a name that the rewrite needs; give it another name"
    return None
