"""Nodes that work element by element and are alike, tested many at a time: their storages are stacked along a new axis.

The test is that of `bnfold.certificate.nodes`. It only ever says yes: nodes that do not pass so are tested one by one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

import numpy as np

from bnfold.affine import Storage
from bnfold.certificate.affines import LARGE, SLACK
from bnfold.certificate.evaluate import evaluate, magnitude
from bnfold.certificate.extents import Shapes
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import EPS
from bnfold.certificate.sample import Draws, Sample, draw, misfit
from bnfold.certificate.wiring import GraphPair, Pair

EACH = frozenset({"Relu", "Add", "Sub", "Sum", "Mul", "Identity", "Neg", "Abs"})
"""Operators whose kernels take tensors with one axis more in front."""


def plainly_made(graph: GraphPair, pairs: Iterable[Pair], draws: Draws) -> set[int]:
    """Indices of those pairs that `check_node` would let pass."""
    alike: dict[Hashable, list[Pair]] = {}
    for pair in pairs:
        if _is_plain(pair):
            alike.setdefault(_kind(graph, pair), []).append(pair)
    found = set[int]()
    for group in alike.values():
        try:
            found |= _passing(graph, group, draws)
        except (NotCertifiedError, ValueError, IndexError, MemoryError):
            continue  # `check_node` says so
    return found


def _is_plain(pair: Pair) -> bool:
    """Whether a node has neither constants nor attributes, neither before nor after."""
    node = pair.old
    changes = pair.changed or pair.reset or pair.bias is not None
    bare = node.op in EACH and len(node.outputs) == 1 and not node.proto.attribute and not changes
    return bare and all(name and node.constant(slot) is None for slot, name in enumerate(node.inputs))


def _kind(graph: GraphPair, pair: Pair) -> Hashable:
    """What the sample of a node hangs on, but for the numbers in its storages."""
    node = pair.old
    names = (*node.inputs, *node.outputs)
    stored = [() if s is None else (s.den.shape, s.num.shape, s.off.shape) for s in map(graph.storage, names)]
    tensors = [(node.graph.shape(name), node.graph.type(name), names.index(name)) for name in names]
    return node.op, *stored, *tensors


def _passing(graph: GraphPair, group: list[Pair], draws: Draws) -> set[int]:
    """Of pairs of one kind."""
    shapes = Shapes(graph, group[0].old, 2).found
    ranks = {len(shape) for shape in shapes.values()}
    if len(group) < 2 or len(ranks) != 1 or len(shapes) != len(group[0].old.inputs):
        return set()
    size = math.prod(np.broadcast_shapes(*shapes.values()))
    found, step = set[int](), max(1, LARGE // max(1, size))
    for start in range(0, len(group), step):
        part = group[start : start + step]
        worst = _worst(graph, part, shapes, draws)
        found |= {pair.old.index for pair, most in zip(part, worst, strict=True) if most <= (SLACK + 1) * EPS}
    return found


def _worst(graph: GraphPair, part: list[Pair], shapes: dict[int, tuple[int, ...]], draws: Draws) -> list[float]:
    """By pair: how far the new node is from making what it should."""
    old, new = part[0].old, part[0].new
    drawn: dict[str, Sample] = {}
    for slot, name in enumerate(old.inputs):
        if name not in drawn:
            drawn[name] = draw(_stacked(graph, [pair.old.inputs[slot] for pair in part]), shapes[slot], draws, slot)
    x, held, x_size, held_size = zip(*(drawn[name] for name in old.inputs), strict=True)
    with np.errstate(all="ignore"):
        (y,), (made,) = evaluate(old, x), evaluate(new, held)
        sizes = magnitude(old, x, x_size, y), magnitude(new, held, held_size, made)
        stored = _stacked(graph, [pair.old.outputs[0] for pair in part]) or Storage.identity(y.ndim)
        error = misfit(stored.den, stored.num, stored.off, y, made, *sizes)
    error = np.broadcast_to(error, (len(part), *error.shape[-len(shapes[0]) :]))
    return [float(each) for each in error.reshape(len(part), -1).max(axis=1, initial=0.0)]


def _stacked(graph: GraphPair, names: list[str]) -> Storage | None:
    """The storages of tensors that are stored alike, along a new first axis."""
    every = [storage for name in names if (storage := graph.storage(name)) is not None]
    if not every:
        return None
    return Storage(*(np.stack(arrays) for arrays in zip(*((s.den, s.num, s.off) for s in every), strict=True)))
