"""How near to Shapley values an explanation comes, at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from passes.errors import RewriteError
from rewriter.engine.integers.origins import is_integer
from rewriter.engine.path.points import Path
from rewriter.engine.problem import Inputs, Problem
from rewriter.engine.sweeps.two_players.asked import CELLS, Cells

Accuracy = Literal["fast", "near", "nearest"]
# Blocks, and pairs of a reference and a draw that they need.
_PRESETS: dict[str, tuple[int, int]] = {"fast": (2, 8), "near": (4, 32), "nearest": (4, 128)}


class Nearer(TypedDict, total=False):
    """What users may ask for; see :class:`Nearness`."""

    blocks: int
    segments: int
    draws: int
    seed: int
    groups: Any
    accuracy: Accuracy | None
    cells: Cells


@dataclass(frozen=True)
class Nearness:
    """What lies between a reference and a sample.

    Args:
        blocks: into how many blocks the inputs are dealt at random, which are switched from reference to
            sample one after the other, and in reverse. 1 is DeepSHAP, as many as there are inputs (or more)
            estimates Shapley values by permutations.
        segments: in how many equal pieces each is switched. With one block ever more of them converge to
            integrated gradients.
        draws: how many orders. Each reference has orders of its own: what counts is references times draws.
        seed: of the orders.
        groups: which elements of a row are switched together, as integers that broadcast to its shape: of
            (T, F) ``np.arange(T)[:, None]`` are steps and ``np.arange(F)`` channels. A list for several
            inputs, None for one whose elements are by themselves; elements of one number are one group
            wherever they are. None: each element, each token, by itself. With ``(model, layer)`` they are of
            a row of what the layer takes, or gives.
        accuracy: ``"fast"``, ``"near"`` or ``"nearest"`` choose blocks and draws by the number of references.
        cells: ``"shapley"`` takes input and old state of each step of a recurrence as two players, which is
            nearer to Shapley values, with blocks and segments, too; ``"deeplift"`` takes them together.

    Raises:
        RewriteError: for anything else.

    Example:
        >>> Nearness(accuracy="near").chosen(references=8)
        (4, 4)
        >>> Nearness(draws=2)
        Traceback (most recent call last):
        passes.errors.RewriteError: draws: a single block has no order to draw; pass blocks=2 or more

    """

    blocks: int = 1
    segments: int = 1
    draws: int = 1
    seed: int = 0
    groups: Any = None
    accuracy: Accuracy | None = None
    cells: Cells = "deeplift"

    def __post_init__(self) -> None:
        for name, least in (("blocks", 1), ("segments", 1), ("draws", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise RewriteError(f"{name}: expected an integer, {least} or more, got {value!r}")
            object.__setattr__(self, name, int(value))
        if self.cells not in CELLS:
            raise RewriteError(f"cells: expected one of {', '.join(CELLS)}, got {self.cells!r}")
        if self.accuracy is None:
            if self.draws > 1 and self.blocks == 1:
                raise RewriteError("draws: a single block has no order to draw; pass blocks=2 or more")
            return
        if not isinstance(self.accuracy, str) or self.accuracy not in _PRESETS:
            raise RewriteError(f"accuracy: expected one of {', '.join(_PRESETS)}, got {self.accuracy!r}")
        if self.blocks > 1 or self.draws > 1:
            raise RewriteError("accuracy: chooses blocks and draws; pass either it or them")

    @classmethod
    def of(cls, nearer: Nearer) -> Nearness:
        """Return what options ask for.

        Raises:
            RewriteError: for values that cannot be.
            TypeError: for options that there are not.

        Example:
            >>> Nearness.of({"blocks": 2}).blocks
            2

        """
        unknown = sorted(set(nearer) - {each.name for each in fields(cls)})
        if unknown:
            known = ", ".join(each.name for each in fields(cls))
            raise TypeError(f"unexpected option {', '.join(unknown)}; there are {known}")
        return cls(**nearer)

    def check_groups(self, shapes: Sequence[torch.Size]) -> None:
        """Refuse groups that do not fit rows of some shapes, whether or not anything is drawn by them.

        Raises:
            RewriteError: naming what was expected.

        """
        if self.groups is not None:
            self._labels(shapes)

    @property
    def is_direct(self) -> bool:
        """Whether there is nothing between a reference and a sample, as in DeepSHAP."""
        return self.blocks == self.segments == 1 and self.accuracy is None

    def chosen(self, references: int) -> tuple[int, int]:
        """Return the number of blocks and of draws."""
        if self.accuracy is None:
            return self.blocks, self.draws
        blocks, pairs = _PRESETS[self.accuracy]
        return blocks, -(-pairs // references)

    def path(
        self, problem: Problem, contexts: Sequence[int], given: int = 0, *, around: bool = False
    ) -> Path:
        """Return the path.

        Args:
            problem: what is to be explained, of one sample at least.
            contexts: inputs that are read beside what is explained, which are as in the sample all the way.
            given: of a layer the number of tensors, which come before the model's inputs; 0 without one.
            around: the model's inputs count besides, by ways around the layer: as one player together.

        Raises:
            RewriteError: for groups that do not fit the inputs, and segments between tokens.

        """
        own = problem.samples[: given or None]
        players = self._players(own, contexts)
        count = max((1 + int(each.max()) for each in players if each.numel()), default=0)
        for each in problem.samples[len(own) :]:
            # What no path changes has the player of something else.
            number = count if around else 0
            players.append(torch.full(each.shape[1:], number, device=each.device))
        count += around
        blocks, draws = self.chosen(problem.count)
        blocks = max(1, min(blocks, count))
        if self.segments > 1:
            for k, each in enumerate(own):
                if k not in contexts and is_integer(each):
                    raise RewriteError(
                        f"segments: there is nothing between two tokens, input {k}; pass blocks=..., which "
                        "switches whole tokens"
                    )
        return Path(blocks, self.segments, draws if blocks > 1 else 1, self.seed, tuple(players))

    def _players(self, samples: Inputs, contexts: Sequence[int]) -> list[Tensor]:
        """Return the player of each element; what no path changes has that of another."""
        labels = self._labels([each.shape[1:] for each in samples])
        players = [k for k in range(len(samples)) if k not in contexts]
        flat = np.concatenate([labels[k].reshape(-1, 2) for k in players] or [np.zeros((0, 2), np.int64)])
        _, numbers = np.unique(flat, axis=0, return_inverse=True)
        found = torch.from_numpy(numbers.reshape(-1).astype(np.int64))
        parts = iter(torch.split(found, [samples[k][0].numel() for k in players]))
        return [
            (next(parts) if k in players else torch.zeros(each[0].numel(), dtype=torch.int64))
            .view(each.shape[1:])
            .to(each.device)
            for k, each in enumerate(samples)
        ]

    def _labels(self, shapes: Sequence[torch.Size]) -> list[np.ndarray[Any, Any]]:
        """Return labels of the elements of a row, (*shape, 2): what numbered them, and the number."""
        given = self.groups if isinstance(self.groups, list | tuple) and len(shapes) > 1 else [self.groups]
        if self.groups is None:
            given = [None] * len(shapes)
        if len(given) != len(shapes):
            raise RewriteError(
                f"groups: expected a list of {len(shapes)}, one per input, or None, got {len(given)}"
            )
        labels = []
        for k, (group, shape) in enumerate(zip(given, shapes, strict=True)):
            if group is None:
                numbers = np.arange(shape.numel()).reshape(shape)
                labels.append(np.stack([np.full(shape, k), numbers], -1))
                continue
            try:
                array = group.cpu().numpy() if isinstance(group, Tensor) else np.asarray(group)
            except ValueError as error:
                raise RewriteError(f"groups: expected an array of integers: {error}") from error
            if not np.issubdtype(array.dtype, np.integer):
                raise RewriteError(f"groups: expected integers, got {array.dtype}")
            try:
                numbers = np.broadcast_to(array, tuple(shape))
            except ValueError:
                raise RewriteError(
                    f"groups: expected what broadcasts to the shape {tuple(shape)} of a row, got "
                    f"{array.shape}"
                ) from None
            # Of users' groups all have one numbering.
            labels.append(np.stack([np.full(shape, -1), numbers.astype(np.int64)], -1))
        return labels
