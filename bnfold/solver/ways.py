"""The ways to let one affine leave: what goes back to the producer, and what goes on to the readers, by channel.

With y = s*x + t, every way is a pair (alpha, beta) per channel, alpha != 0: x is stored as
``x' = (s*x + t - beta)/alpha`` and read as ``y = alpha*x' + beta``. Three things can go either way: the magnitude of
the scale, its sign, and the shift. A channel with s = 0 has none of the three to give: it is pushed (y is the constant
t) or pulled (x' is).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Array, Storage
from bnfold.graph import Graph, Node
from bnfold.lazy import lazy
from bnfold.rules import Source

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Way:
    """What both ends of an affine must be stored as."""

    name: str
    """pull: all goes back; push: all goes on; split: each takes a part."""
    x: Storage
    y: Storage

    def only(self, mask: Mask, other: Way) -> Way:
        """This way where the mask is true, the other one elsewhere."""
        name = self.name if self.name == other.name else "split"
        return Way(name, other.x.but(mask, self.x), other.y.but(mask, self.y))


@dataclass(frozen=True, eq=False)
class Ends:
    """An affine between two tensors, as these are stored by now: y' = scale*x' + shift."""

    x: Storage
    y: Storage
    source: Source

    def ways(self) -> Iterator[Way]:
        """All ways, the simple ones first."""
        x, y, affine = self.x, self.y, self.source.affine
        yield Way("pull", y.before(affine), y)
        yield Way("push", x, x.after(affine))
        if not (x.has_decode and y.has_encode):
            return
        scale, shift = self.scale, self.shift
        zero, sign, size = scale == 0, np.where(scale < 0, -1.0, 1.0), np.abs(scale)
        one, none = np.ones_like(scale), np.zeros_like(shift)
        if zero.any():
            yield self._way(zero, one, none)
        if np.any(shift[~np.broadcast_to(zero, shift.shape)] != 0):
            yield self._way(zero, scale, none)
        if (scale < 0).any():
            yield self._way(zero, size, none)
            yield self._way(zero, sign, none)
        if (shift != 0).any():
            yield self._way(zero, one, shift)
            if (scale < 0).any():
                yield self._way(zero, sign, shift)
                yield self._way(zero, size, shift)

    @lazy
    def scale(self) -> Array:
        """Of the affine between what is stored."""
        return np.asarray(self.y.a * self.source.affine.scale * self.x.alpha) + 0.0 * self.y.b

    @lazy
    def shift(self) -> Array:
        """Of the affine between what is stored."""
        s, t = self.source.affine.scale, self.source.affine.shift
        return np.asarray(self.y.a * (s * self.x.beta + t) + self.y.b) + 0.0 * self.x.alpha

    def _way(self, zero: Mask, alpha: Array, beta: Array) -> Way:
        """The way (alpha, beta); channels of scale zero are pushed."""
        scale, shift = self.scale, self.shift
        with np.errstate(divide="ignore", invalid="ignore"):
            a = np.where(zero, 1.0, scale / np.where(alpha == 0, 1.0, alpha))
            b = np.where(zero, 0.0, (shift - beta) / np.where(alpha == 0, 1.0, alpha))
        alpha, beta = np.where(zero, 0.0, alpha), np.where(zero, shift, beta)
        return Way("split", self.x.then_encode(a, b), self.y.then_decode(alpha, beta))

    @property
    def nothing(self) -> Way:
        """Both ends as they are."""
        return Way("split", self.x, self.y)

    def classes(self, graph: Graph) -> list[Mask]:
        """Channels that behave alike: of one sign, shifted or not, in one part of a Concat, of a Split or Slice."""
        scale, shift = np.broadcast_arrays(self.scale, self.shift)
        keys = (np.sign(scale) * 2 + (shift != 0)).astype(np.int64)
        varying = [axis for axis, size in enumerate(keys.shape) if size > 1]
        if len(varying) == 1:
            along = [1] * keys.ndim
            along[varying[0]] = -1
            parts = np.zeros(keys.shape[varying[0]], np.int64)
            for seam in seams(graph, self.source, varying[0]):
                parts[seam:] += 1
            keys = keys + 8 * parts.reshape(along)
        values = np.unique(keys)[::-1]  # positive scales first: where these have no way, the others do not matter
        return [keys == value for value in values] if len(values) <= CLASSES else []


CLASSES = 24
"""More classes of channels than this are not tried one by one."""

_KEEPS = frozenset({"Relu", "LeakyRelu", "PRelu", "Clip", "Identity", "MaxPool", "AveragePool", "Dropout", "Sigmoid"})
_DEPTH = 4


def seams(graph: Graph, source: Source, axis: int) -> set[int]:
    """Where along an axis the tensors around an affine are joined from parts, or cut into parts."""
    node, found = source.node, set[int]()
    name, _ = source.ends
    for _ in range(_DEPTH):
        producer = graph.producers.get(name)
        if producer is None or producer.op not in _KEEPS | {"Concat"}:
            break
        if producer.op == "Concat":
            rank = graph.rank(name)
            if rank and producer.get_int("axis", 1) % rank == axis:
                found |= _ends(graph, list(producer.inputs), axis)
            break
        name = producer.inputs[0]
    for reader in _readers(graph, node.outputs[0]):
        if reader.op == "Split":
            found |= _ends(graph, list(reader.outputs), axis)
        elif reader.op == "Slice":
            for slot in (1, 2):
                bound = reader.constant(slot)
                found |= set(bound.ints()) if bound is not None else set()
    size = max(source.affine.scale.shape[axis], source.affine.shift.shape[axis])
    return {seam for seam in found if 0 < seam < size}


def _readers(graph: Graph, name: str) -> list[Node]:
    """Who reads a tensor, also behind functions of single elements."""
    found, stack = [], [(name, 0)]
    while stack:
        name, depth = stack.pop()
        for reader, _ in graph.consumers.get(name, []):
            found.append(reader)
            if reader.op in _KEEPS and depth < _DEPTH:
                stack.append((reader.outputs[0], depth + 1))
    return found


def _ends(graph: Graph, names: list[str], axis: int) -> set[int]:
    """Running sums of the parts' sizes along an axis."""
    found, total = set[int](), 0
    for name in names:
        shape = graph.shape(name)
        size = None if shape is None or len(shape) <= axis else shape[axis]
        if not isinstance(size, int):
            break
        total += size
        found.add(total)
    return found
