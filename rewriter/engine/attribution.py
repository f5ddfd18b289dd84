"""Attributions of a linked model's outputs to its inputs, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter.engine.kept_state import fresh
from rewriter.engine.merged_batch import outers_of
from rewriter.engine.packing import PackByIndex
from rewriter.engine.sweeps.linked_recurrence import Forward
from rewriter.engine.tape import Outers, Pairing, Tape, running
from rewriter.engine.tiles import Tiles, default_budget, spans
from rewriter.engine.weights import SharedWeights

Inputs = list[Tensor]
# Bytes that the run of the references may leave to be remembered.
_SMALL = 2**28


@dataclass(frozen=True)
class Target:
    """What is explained, and with respect to what.

    Args:
        model: a linked copy.
        weights: those that it shares with the user's model.
        select: picks the tensor to explain from what the model returns.
        interim: name of the operation whose inputs receive the attributions, or None for the model's.
        tokens: integers receive attributions, where an embedding looks them up.
        stateful: the model's code keeps something between calls, so that each run needs a clone.

    """

    model: nn.Module
    weights: SharedWeights
    select: Callable[[Any], Any]
    interim: str | None = None
    tokens: bool = False
    stateful: bool = False

    def run(self, inputs: Inputs) -> Tensor:
        """Return the outputs to explain, with the batch first.

        Raises:
            RewriteError: if there is not one row per row of the input.

        """
        model = fresh(self.model) if self.stateful else self.model
        output = self.select(model(*inputs))
        if not isinstance(output, Tensor) or output.dim() == 0 or output.shape[0] != inputs[0].shape[0]:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise RewriteError(
                f"expected an output with the batch of {inputs[0].shape[0]} in dimension 0, got {got}; pass "
                "output=… to say which part of what the model returns is to be explained"
            )
        return output


@dataclass(frozen=True)
class Part:
    """Attributions of some samples to some references.

    Args:
        begin: first sample.
        end: behind the last sample.
        outputs: the model's, (end - begin, *).
        sums: for each input the sum over those references, (K, end - begin, *shape), float64.
        pairs: the number of pairs.

    """

    begin: int
    end: int
    outputs: Tensor
    base: Tensor
    sums: Inputs
    pairs: int


@dataclass
class Remembered:
    """What one explanation leaves for the next: sizes, and the run of the references if it is small.

    Args:
        sizes: by the shape of a row, what :func:`_measure` returns of it.
        references: the run, with the checksums of the weights that it was made with.

    """

    sizes: dict[Any, tuple[int, int, list[Outers]]] = field(default_factory=dict)
    references: tuple[tuple[float, ...], Tape, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the run, which may be large: whoever needs it can make it again."""
        return {"sizes": self.sizes, "references": None}


def attribute(
    target: Target,
    samples: Inputs,
    references: Inputs,
    chosen: Tensor,
    *,
    own: bool = False,
    max_memory: int | None = None,
    remembered: Remembered | None = None,
) -> Iterator[Part]:
    """Yield the attributions tile by tile; sums over all parts of a sample are sums over all references.

    Args:
        target: what to explain.
        samples: one tensor per input of the model, M rows each.
        references: likewise, N rows each; for ``own`` (M, N, *).
        chosen: (M, K), indices of the outputs, flattened, to explain.
        own: each sample has references of its own.
        max_memory: bytes for what is needed beside the samples and the result.
        remembered: what was left by an explanation with the same references, unless ``own``.

    """
    count = references[0].shape[1] if own else references[0].shape[0]
    counts = (samples[0].shape[0], count, chosen.shape[1])
    if 0 in counts:
        return
    device = samples[0].device
    budget = default_budget(device) if max_memory is None else max_memory
    remembered = Remembered() if remembered is None else remembered
    sizes = remembered.sizes
    row = [each[:1] for each in samples]
    key = tuple((each.shape, each.dtype) for each in row)
    if key not in sizes:
        sizes[key] = _measure(target, row)
    row_bytes, step_bytes, outers = sizes[key]
    tiles = Tiles.choose(counts, row_bytes, step_bytes, budget, device.type, own=own)
    small = not own and tiles.references == count and row_bytes * count <= _SMALL
    for begin, end in spans(count, tiles.references):
        # What one block leaves is gone before the next one runs.
        yield from _block(
            target, samples, references, chosen, (begin, end), tiles, outers, small and remembered, own
        )


def _block(
    target: Target,
    samples: Inputs,
    references: Inputs,
    chosen: Tensor,
    span: tuple[int, int],
    tiles: Tiles,
    outers: list[Outers],
    remembered: Remembered | Literal[False],
    own: bool,
) -> Iterator[Part]:
    """Yield the attributions of all samples to some references, which run once unless they are ``own``."""
    r0, r1 = span
    shared = None if own else [each[r0:r1] for each in references]
    tape, base = (None, samples[0]) if shared is None else _record(target, shared, remembered)
    for s0, s1 in spans(samples[0].shape[0], tiles.samples):
        rows = [each[s0:s1] for each in samples]
        if shared is None or tape is None:
            # References in the order (N, M), so that one of each sample's makes one batch.
            of_samples = [each[s0:s1, r0:r1].transpose(0, 1) for each in references]
            recorded, base = _record(target, [each.flatten(0, 1) for each in of_samples])
            background = of_samples
        else:
            recorded = Tape(entries=tape.entries, inputs=tape.inputs, tokens=target.tokens)
            background = [each.unsqueeze(1) for each in shared]
        recorded.outers = outers
        pairing = Pairing(s1 - s0, r1 - r0, own)
        sums, outputs = _pair(target, rows, background, recorded, pairing, chosen[s0:s1], tiles)
        total = torch.unflatten(base, 0, (r1 - r0, -1)).sum(0)
        # While the references of other samples run, what these left is not needed any more.
        del recorded
        yield Part(s0, s1, outputs, total, sums, (s1 - s0) * (r1 - r0))


def _measure(target: Target, row: Inputs) -> tuple[int, int, list[Outers]]:
    """Return the bytes that one row leaves, those of one step of its widest recurrence, and the outers."""

    def record(inputs: Inputs, tape: Tape) -> Tape:
        _run(target, inputs, tape)
        return tape

    # Two rows: a model may take the batch away where it is of size 1.
    tape = record([torch.cat([each, each]) for each in row], Tape(tokens=target.tokens))
    total = step = 0
    for _, entry in tape.entries:
        if isinstance(entry, Forward):
            kept = sum(each.nbytes for each in entry.kept)
            total += kept
            # A third of it are the arguments of the activations.
            step = max(step, kept // 3 // entry.kept[0].shape[0])
        else:
            total += sum(each.nbytes for each in (*entry[0], entry[1]))
    return total // 2 + sum(each.nbytes for each in row), step // 2, outers_of(record, row, tape)


def _record(
    target: Target, references: Inputs, remembered: Remembered | Literal[False] = False
) -> tuple[Tape, Tensor]:
    """Run the references, unless that is remembered; return what they left and their flattened outputs."""
    weights = target.weights.checksums() if remembered else ()
    if remembered and remembered.references and remembered.references[0] == weights:
        return remembered.references[1:]
    tape = Tape(tokens=target.tokens)
    base = _run(target, references, tape)
    if remembered:
        remembered.references = weights, tape, base
    return tape, base


def _run(target: Target, inputs: Inputs, tape: Tape) -> Tensor:
    with torch.inference_mode(False), torch.no_grad(), running(tape):
        # Copies: the model's code may write to its inputs.
        return _flat(target.run([each.clone() for each in inputs]))


def _flat(output: Tensor) -> Tensor:
    return output.flatten(1) if output.dim() > 1 else output.unsqueeze(1)


def _pair(
    target: Target,
    samples: Inputs,
    references: Inputs,
    tape: Tape,
    pairing: Pairing,
    chosen: Tensor,
    tiles: Tiles,
) -> tuple[Inputs, Tensor]:
    """Return the sums of attributions over the references, and the outputs of the samples."""
    rows = pairing.samples
    if not pairing.own and pairing.samples == pairing.references:
        # The batch is told by its size: let the two differ.
        samples = [torch.cat([each, each[-1:]]) for each in samples]
        chosen = torch.cat([chosen, chosen[-1:]])
        pairing.samples += 1
    tape.pairing = pairing
    leaves = [_leaf(each) for each in samples]
    with torch.inference_mode(False), torch.enable_grad(), running(tape), PackByIndex():
        output = target.run([leaf.clone() if leaf.requires_grad else leaf for leaf in leaves])
    if tape.position != len(tape.entries):
        raise RewriteError(
            f"{tape.entries[tape.position][0]}: ran for the references and not for the samples; both must "
            "run the same operations"
        )
    if target.interim is not None:
        leaves = tape.leaves
        references = [_as_pairs(pairing, a, b) for a, b in zip(leaves, tape.inputs, strict=True)]
    flat = _flat(output)
    lookups = [(each, each.source(leaves, references)) for each in tape.lookups]
    looked_up = [each.output for each, _ in lookups]
    sums = [
        torch.zeros(chosen.shape[1], *leaf.shape, dtype=torch.float64, device=leaf.device) for leaf in leaves
    ]
    for begin, end in spans(pairing.references, tiles.paired):
        pairing.begin, pairing.end = begin, end
        deltas = [
            leaf.detach() - each[begin:end] if leaf.requires_grad else None
            for leaf, each in zip(leaves, references, strict=True)
        ]
        for k0, k1 in spans(chosen.shape[1], tiles.outputs):
            pairing.outputs = k1 - k0
            multipliers = _backward(flat, [*leaves, *looked_up], chosen[:, k0:k1], pairing)
            for total, each, delta in zip(sums, multipliers[: len(leaves)], deltas, strict=True):
                if each is not None and delta is not None:
                    total[k0:k1] += (torch.unflatten(each, 0, (k1 - k0, end - begin)) * delta).sum(1)
            for (lookup, source), each in zip(lookups, multipliers[len(leaves) :], strict=True):
                if each is not None:
                    paired = torch.unflatten(each, 0, (k1 - k0, end - begin))
                    sums[source][k0:k1] += lookup.pull(paired, pairing)
    return [each[:, :rows] for each in sums], flat.detach()[:rows]


def _leaf(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False):
        leaf = tensor.detach().clone()
        return leaf.requires_grad_() if leaf.is_floating_point() else leaf


def _as_pairs(pairing: Pairing, leaf: Tensor, reference: Tensor) -> Tensor:
    pairing.begin, pairing.end = 0, pairing.references
    return pairing.pairs(leaf.detach(), reference)[1]


def _backward(flat: Tensor, leaves: Inputs, chosen: Tensor, pairing: Pairing) -> list[Tensor | None]:
    """Return the multipliers of each leaf, (K × n, M, *shape)."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanted or not flat.requires_grad:
        return [None] * len(leaves)
    picked = flat.new_zeros(chosen.shape[1], *flat.shape)
    picked.scatter_(2, chosen.T.unsqueeze(-1).to(flat.device), 1.0)
    batch = picked.repeat_interleave(pairing.count, 0)

    def pull(weights: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(flat, wanted, weights, retain_graph=True, materialize_grads=True)

    found = iter(torch.func.vmap(pull)(batch))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]
