"""How the tensors at a node are stored, for the formulas: along an axis, as a vector."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Array, Storage
from bnfold.certificate.affines import storage_of
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import EPS, Exact, alike, in_memory
from bnfold.certificate.wiring import GraphPair
from bnfold.constants import Constant
from bnfold.graph import Node


def vector(array: Array, axis: int, size: int) -> Array:
    """An array that varies along one axis only, as a vector."""
    if array.size > array.shape[axis]:
        array = alike(array, [other for other in range(array.ndim) if other != axis % array.ndim])
    if array.size not in (1, size) or array.size != array.shape[axis]:
        raise NotCertifiedError("a tensor is stored in a way that varies on an axis where its weights have none")
    return array.reshape(-1) if array.size == size else np.full(size, array.reshape(()))


def regular(storage: Storage, gone: NDArray[np.bool_]) -> Storage:
    """A storage in which channels of which nothing is left count as stored as they were."""
    arrays = zip((storage.den, storage.num, storage.off), (1.0, 1.0, 0.0), strict=True)
    return Storage(*(np.where(gone, plain, array) for array, plain in arrays))


def decode_of(graph: GraphPair, node: Node, name: str) -> tuple[Array, Array]:
    """(alpha, beta) of an input."""
    storage = storage_of(graph, node, name)
    if not storage.has_decode:
        raise NotCertifiedError(f"{name!r} has lost a channel that is read")
    return storage.alpha, storage.beta


def encode_of(graph: GraphPair, node: Node) -> tuple[Array, Array]:
    """(a, b) of the first output."""
    storage = storage_of(graph, node, node.outputs[0])
    if not storage.has_encode:
        raise NotCertifiedError("its output has a dead channel that weights cannot make")
    return storage.a, storage.b


def read_along(graph: GraphPair, node: Node, name: str, axis: int, size: int) -> tuple[Array, Array]:
    """(alpha, beta) of an input, along an axis."""
    alpha, beta = decode_of(graph, node, name)
    return vector(alpha, axis, size), vector(beta, axis, size)


def written_along(graph: GraphPair, node: Node, axis: int, size: int) -> tuple[Array, Array]:
    """(a, b) of the first output, along an axis."""
    a, b = encode_of(graph, node)
    return vector(a, axis, size), vector(b, axis, size)


def weight_of(node: Node, slot: int) -> Constant:
    """A constant, read once."""
    found = node.constant(slot)
    if found is None:
        raise NotCertifiedError("its weights are not constant")
    return in_memory(found)


def one_for_all(array: Array, axes: Iterable[int]) -> Array:
    """An array that varies on none of these axes by more than rounding, with size one there."""
    for axis in axes:
        if np.any(np.ptp(array, axis=axis) > 64 * EPS * np.max(np.abs(array))):
            raise NotCertifiedError("a tensor is stored in a way that varies where its operator sees one value")
        array = array.take([0], axis)
    return array


def operand(value: Array, magnitude: Array) -> Exact:
    """A constant that is a short sum of terms, with the sum of their magnitudes."""
    shape = np.broadcast_shapes(value.shape, magnitude.shape)
    return Exact.of(np.broadcast_to(value, shape), np.broadcast_to(16 * EPS * magnitude, shape))
