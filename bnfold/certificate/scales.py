"""Scales and shifts of one tensor that became one: what a BatchNormalization or a Mul must hold, or that it left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bnfold.affine import Array
from bnfold.certificate.affines import (
    affine_of,
    align,
    batchnorm_parameters,
    changes_nothing,
    check_left,
    ends_of,
    storage_of,
)
from bnfold.certificate.ports import vector
from bnfold.certificate.result import NotCertifiedError, WrongError
from bnfold.certificate.rounding import EPS, Exact, alike
from bnfold.certificate.wiring import GraphPair, Region
from bnfold.graph import Dim, Node

SCALES = frozenset({"BatchNormalization", "Mul"})
"""The operators that they become."""


class Map(NamedTuple):
    """scale * x + shift, with arrays that broadcast against x, and the sums of magnitudes that both are made of."""

    scale: Array
    shift: Array
    scale_size: Array
    shift_size: Array

    def then(self, s: Array, t: Array, size: Array) -> Map:
        """s * this + t, where t is of magnitude `size`."""
        scale, shift = self.scale * s, self.shift * s + t
        return Map(scale, shift, self.scale_size * np.abs(s), self.shift_size * np.abs(s) + size)

    def plus(self, other: Map, sign: float) -> Map:
        """this + sign * other."""
        scale, shift = self.scale + sign * other.scale, self.shift + sign * other.shift
        return Map(scale, shift, self.scale_size + other.scale_size, self.shift_size + other.shift_size)


def scales_of(graph: GraphPair, region: Region, shape: Sequence[Dim]) -> tuple[dict[int, Exact], tuple[int, ...]]:
    """What the constants of the node should be, by slot; and a small shape of x on which it can be tried.

    Raises:
        WrongError: the node cannot be it.
        NotCertifiedError: there is no way to tell.
    """
    root, rank = region.members[-1], len(shape)
    given, made = (storage_of(graph, root, name) for name in (region.source, root.outputs[0]))
    if not (given.has_decode and made.has_encode):
        raise NotCertifiedError("a channel at its ends is dead or lost")
    start = Map(given.alpha, given.beta, np.abs(given.alpha), np.abs(given.beta))
    whole = _map(region.members, region.source, start).then(made.a, made.b, np.abs(made.b))
    ends = (given.den, given.num, given.off, made.den, made.num, made.off)
    full = np.broadcast_shapes((1,) * rank, *(array.shape for array in (*whole, *ends)))
    if len(full) != rank or any(size not in (1, dim) for size, dim in zip(full, shape, strict=True)):
        raise NotCertifiedError(f"they may enlarge {region.source!r}, or its shape is not known")
    sizes = tuple(size if size > 1 or dim == 1 else 2 for size, dim in zip(full, shape, strict=True))
    whole = Map(*(np.broadcast_to(array, np.broadcast_shapes(array.shape, (1,) * rank)) for array in whole))
    doubt = (len(region.members) + 8) * EPS
    return (_factor if region.new.op == "Mul" else _normalization)(region, whole, doubt, rank), sizes


def check_merged_scales_removed(graph: GraphPair, root: Node) -> None:
    """They became one, and that left: the tensor and what they make of it are one in the output.

    Raises:
        WrongError: they are not.
        NotCertifiedError: there is no way to tell.
    """
    ends = graph.witness.removed[root.index]
    shape = root.graph.shape(ends[0])
    if ends[1] != root.outputs[0] or shape is None:
        raise NotCertifiedError(f"it left between {ends[0]!r} and {ends[1]!r}, which are not its ends")
    one = np.ones((1,) * len(shape))
    whole = _map(graph.members(root.index), ends[0], Map(one, 0 * one, one, 0 * one))
    if any(
        size not in (1, dim) for size, dim in zip(np.broadcast_shapes(*(a.shape for a in whole)), shape, strict=True)
    ):
        raise NotCertifiedError(f"they may enlarge {ends[0]!r}, or its shape is not known")
    check_left(root, whole.scale, whole.shift, whole.shift_size, *ends_of(graph, ends, len(shape)))


def _map(members: Sequence[Node], source: str, start: Map) -> Map:
    """What the last of the nodes makes."""
    maps = {source: start}
    for node in members:
        maps[node.outputs[0]] = _made(node, [maps[name] for name in node.inputs if name in maps])
    return maps[members[-1].outputs[0]]


def _made(node: Node, given: list[Map]) -> Map:
    """The map of a node's output."""
    if not given:
        raise WrongError("node", f"{node.label} reads something else")
    first = given[0]
    one = np.ones((1,) * first.scale.ndim)
    if changes_nothing(node):
        return first
    if node.op == "Neg":
        return first.then(-one, 0 * one, 0 * one)
    if node.op in ("Add", "Sub", "Sum", "Mean") and len(given) == len(node.inputs):
        total = first
        for other in given[1:]:
            total = total.plus(other, -1.0 if node.op == "Sub" else 1.0)
        return total.then(one / len(given), 0 * one, 0 * one) if node.op == "Mean" else total
    _, s, t, size = affine_of(node)
    return first.then(s, t, size)


def _normalization(region: Region, whole: Map, doubt: float, rank: int) -> dict[int, Exact]:
    """A BatchNormalization, with the mean and the variance that it holds."""
    _, _, mean, sigma = batchnorm_parameters(region.new)
    scale, shift, scale_size, shift_size = (vector(array, 1, len(mean)) for array in whole)
    bias, bias_size = shift + scale * mean, shift_size + scale_size * np.abs(mean)
    return {1: Exact.of(scale * sigma, doubt * scale_size * sigma), 2: Exact.of(bias, doubt * bias_size)}


def _factor(region: Region, whole: Map, doubt: float, rank: int) -> dict[int, Exact]:
    """A Mul by a constant, which holds no shift."""
    new = region.new
    if region.bias is not None or np.any(np.abs(whole.shift) > doubt * whole.shift_size):
        raise WrongError("constant", "a Mul holds no shift")
    return {(slot := _constant_slot(new)): _as_stored(new, slot, whole.scale, doubt * whole.scale_size, rank)}


def _constant_slot(node: Node) -> int:
    found = next((slot for slot in (0, 1) if node.constant(slot) is not None), None)
    if found is None:
        raise WrongError("node", f"{node.label} holds no constant")
    return found


def _as_stored(node: Node, slot: int, value: Array, doubt: Array, rank: int) -> Exact:
    """In the shape of the node's constant; as it is where that holds once what differs by rounding."""
    constant = node.constant(slot)
    assert constant is not None
    shape = align(node, constant.float64(), rank).shape
    gone = tuple(axis for axis, size in enumerate(shape) if size == 1)
    short = alike(value, gone)
    if any(short.shape[axis] > 1 for axis in gone):
        return Exact.of(*np.broadcast_arrays(value, doubt))
    value, doubt = short, doubt.max(axis=gone, keepdims=True)
    return Exact.of(*(np.broadcast_to(array, shape).reshape(constant.shape) for array in (value, doubt)))
