"""Replacements that a user gives for modules of types of their own, or of torch's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from passes.errors import Decline, ReplacementError
from passes.operations.contract import Build
from passes.replacement import ApplyReplacements, Replacement, Rewrite
from passes.user_code.clone import clone_structure
from passes.user_code.hooks import has_hooks
from passes.user_code.source import line_of

#: What modules of exactly a type become, by the type.
Replacements = Mapping[type[nn.Module], Build]


def checked(replacements: Any) -> Replacements:
    """Return what a user gives as replacements, none for None.

    Raises:
        ReplacementError: unless it maps classes of modules to functions.

    Example:
        >>> checked({nn.Tanh: lambda module: nn.Sigmoid()}).keys(), checked(None)
        (dict_keys([<class 'torch.nn.modules.activation.Tanh'>]), {})

    """
    if replacements is None:
        return {}
    if not isinstance(replacements, Mapping):
        raise ReplacementError(
            "replacements: expected a mapping from classes of modules to functions that build what they "
            f"become, got a {type(replacements).__name__}"
        )
    for kind, build in replacements.items():
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or kind is nn.Module:
            raise ReplacementError(
                f"replacements: expected classes that derive from nn.Module as keys, got {kind!r}"
            )
        if not callable(build):
            raise ReplacementError(
                f"replacements[{kind.__name__}]: expected a function that takes the module and returns "
                f"what it becomes, got {build!r}"
            )
    return dict(replacements)


class UsersReplacement(Replacement):
    """Modules of exactly the types that a user lists: a subclass may compute anything else.

    Args:
        builds: what each type becomes.

    """

    def __init__(self, builds: Replacements) -> None:
        self.builds = builds

    def matches(self, module: nn.Module) -> bool:
        """Whether ``module`` is of a type that is listed."""
        return type(module) in self.builds

    def decline(self, module: nn.Module) -> str | None:
        """Say what hangs on the module that its replacement would not have."""
        if has_hooks(module):
            return "has hooks, which its replacement would not have; put them on a module around it"
        if "forward" in module.__dict__:
            return "its forward was replaced on the instance, so it computes something else than its class"
        return None

    def build(self, module: nn.Module, name: str) -> nn.Module:
        """Return what the user builds, in the module's mode, made of modules that nobody else has.

        Raises:
            ReplacementError: naming the module, if no module is built, one that is to be replaced itself by
                one of its type, or building it fails.

        """
        built, kinds = module, [type(module)]
        while type(built) in self.builds:
            what = f"replacements[{kinds[-1].__name__}], asked for {name or 'the model itself'}"
            try:
                built = self.builds[kinds[-1]](built)  # type: ignore[assignment]  # what else is an error
            except Exception as error:
                at = line_of(error)
                raise ReplacementError(
                    f"{what}, raised {type(error).__name__}: {error}{f' ({at})' if at else ''}"
                ) from error
            if not isinstance(built, nn.Module) or type(built) in kinds:
                got = f"a {type(built).__name__} again" if isinstance(built, nn.Module) else repr(built)
                raise ReplacementError(
                    f"{what}, returned {got}, expected an nn.Module of another type that computes the same"
                )
            kinds.append(type(built))
        # The module itself, if it is a part of what was built, is one beside what it becomes.
        own: nn.Module = clone_structure(built)
        return own.train(module.training)


@dataclass
class Replaced:
    """What became of a user's replacements.

    Args:
        rewrites: the modules that were replaced.
        declines: those that were not, and why.
        modules: of the model as it is now, by name.
        tensors: names of the parameters and buffers that each replaced module of the user's had, by their
            ``id``.
        memory: where the numbers of those lie that are no integers.

    """

    rewrites: list[Rewrite]
    declines: list[Decline]
    modules: dict[str, nn.Module]
    tensors: dict[str, dict[int, list[str]]]
    memory: dict[str, frozenset[int]] = field(default_factory=dict)

    def shares(self, rewrite: Rewrite) -> bool:
        """Whether what a module became computes with the memory of all its numbers, in whatever layout."""
        return self.memory.get(rewrite.name, frozenset()) <= _memory(rewrite.module)


def replace_users(builds: Replacements, modules: Mapping[str, nn.Module], model: nn.Module) -> Replaced:
    """Replace what a user lists; in what is built for a type, other types only.

    Args:
        builds: what each type becomes.
        modules: of the model, by name.
        model: a clone of the user's, which is changed.

    """
    if not builds:
        return Replaced([], [], dict(modules), {})
    kinds = {name: type(module) for name, module in modules.items()}
    replaced = {name: module for name, module in modules.items() if kinds[name] in builds}
    tensors = {name: _tensors(module) for name, module in replaced.items()}
    memory = {name: _memory(module) for name, module in replaced.items()}
    turn = ApplyReplacements([UsersReplacement(builds)], modules)
    turn(model)
    prefixes = tuple(f"{each.name}." if each.name else "" for each in turn.rewrites)
    reached = {id(each) for each in model.modules()}

    def is_there(name: str, module: nn.Module) -> bool:
        # What was a part of something that was replaced may be gone.
        return not (name and name.startswith(prefixes)) or id(module) in reached

    done = Replaced(
        [each for each in turn.rewrites if is_there(each.name, each.module)],
        turn.declines,
        {name: module for name, module in modules.items() if is_there(name, module)},
        tensors,
        memory,
    )
    for rewrite in list(done.rewrites):
        prefix = f"{rewrite.name}." if rewrite.name else ""
        inside = {prefix + name: each for name, each in rewrite.module.named_modules() if name}
        others = {kind: build for kind, build in builds.items() if kind is not kinds[rewrite.name]}
        below = replace_users(others, inside, model)
        done.rewrites += below.rewrites
        done.declines += below.declines
        done.modules |= below.modules
    return done


def names_now(rewrite: Rewrite, tensors: Mapping[int, list[str]]) -> dict[str, tuple[str, ...]]:
    """Say where each parameter and buffer of a replaced module is now; nowhere if it was copied, or is gone.

    Args:
        rewrite: the module.
        tensors: the names that it had there.

    """
    prefix = f"{rewrite.name}." if rewrite.name else ""
    there = {key: names[0] for key, names in _tensors(rewrite.module).items()}
    return {
        prefix + name: (prefix + there[key],) if key in there else ()
        for key, names in tensors.items()
        for name in names
    }


def _memory(module: nn.Module) -> frozenset[int]:
    held = itertools.chain(module.parameters(), module.buffers())
    return frozenset(each.untyped_storage()._cdata for each in held if each.is_floating_point())


def _tensors(module: nn.Module) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    named = itertools.chain(
        module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    )
    for name, tensor in named:
        found.setdefault(id(tensor), []).append(name)
    return found
