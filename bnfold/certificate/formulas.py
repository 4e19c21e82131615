"""What the constants of a node should be, derived once more from how the tensors around it are stored.

Everywhere ``v = alpha*v' + beta`` on an input, ``y' = a*y + b`` on the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.certificate.affines import affine_of, aligned, batchnorm_parameters
from bnfold.certificate.ports import (
    decode_of,
    encode_of,
    operand,
    read_along,
    storage_of,
    vector,
    weight_of,
    written_along,
)
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import EPS, Exact, read_rows, spans
from bnfold.certificate.wiring import GraphPair, Pair
from bnfold.constants import Constant
from bnfold.graph import Node

Formula = Callable[[GraphPair, Pair], Mapping[int, Exact]]

BIAS = -1
"""The slot of a bias behind a MatMul."""


def _sum(
    shape: tuple[int, ...], part: Callable[[int, int], tuple[slice, Array, Array]], size: int
) -> tuple[Array, Array]:
    """A weighted sum over a large constant, piece by piece, and the sum of magnitudes."""
    total, magnitude = np.zeros(size), np.zeros(size)
    for start, stop in spans(shape):
        where, terms, magnitudes = part(start, stop)
        total[where] += terms
        magnitude[where] += magnitudes
    return total, magnitude


def _conv(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """W' = a W alpha;  B' = a (B + sum(W beta)) + b."""
    node = pair.old
    if node.constant(1) is None:
        return _bias_alone(graph, node)
    w, group = weight_of(node, 1), node.get_int("group", 1)
    transposed = node.op == "ConvTranspose"
    rows, columns = w.shape[0], w.shape[1]
    channels, outputs = (rows, columns * group) if transposed else (columns * group, rows)
    alpha, beta = read_along(graph, node, node.inputs[0], 1, channels)
    a, b = written_along(graph, node, 1, outputs)
    tail = (1,) * (len(w.shape) - 2)
    # The vector that runs along the second axis of W is another one for each group of rows.
    own, other = (alpha, a) if transposed else (a, alpha)
    across = np.repeat(other.reshape(group, -1), rows // group, 0) if group > 1 else other.reshape(1, -1)
    weight = Exact.scaled(w, own.reshape(rows, 1, *tail), across.reshape(*across.shape, *tail))

    def forward(start: int, stop: int) -> tuple[slice, Array, Array]:
        own_beta = np.repeat(beta.reshape(group, -1), rows // group, 0)[start:stop]
        piece = read_rows(w, start, stop).reshape(stop - start, columns, -1)
        sums, magnitudes = piece.sum(2) * own_beta, np.abs(piece).sum(2) * np.abs(own_beta)
        return slice(start, stop), sums.sum(1), magnitudes.sum(1)

    if not np.any(beta):
        moved, magnitude = np.zeros(outputs), np.zeros(outputs)
    elif not transposed:
        moved, magnitude = _sum(w.shape, forward, outputs)
    else:
        if np.prod(w.shape[2:]) != 1:
            raise NotCertifiedError("a shift does not pass a transposed convolution whose outputs see several taps")
        terms = (w.float64().reshape(rows, columns) * beta[:, None]).reshape(group, -1, columns)
        moved, magnitude = terms.sum(1).reshape(-1), np.abs(terms).sum(1).reshape(-1)
    count = int(np.prod(w.shape, dtype=np.int64)) // outputs + 8
    return {1: weight, 2: _bias(node.constant(2), 1.0, 1.0, a, b, moved, magnitude, count)}


def _bias_alone(graph: GraphPair, node: Node) -> Mapping[int, Exact]:
    """B' = a B + b, where the weights are computed and no shift comes in."""
    a, b = encode_of(graph, node)
    channels = node.graph.shape(node.outputs[0])
    size = None if channels is None else channels[1]
    if not isinstance(size, int) or np.any(decode_of(graph, node, node.inputs[0])[1]):
        raise NotCertifiedError("its weights are computed, and a shift reaches them")
    a, b = vector(a, 1, size), vector(b, 1, size)
    return {2: _bias(node.constant(2), 1.0, 1.0, a, b, np.zeros(size), np.zeros(size), 8)}


def _bias(
    old: Constant | None, q: float, new_q: float, a: Array, b: Array, moved: Array, magnitude: Array, count: int
) -> Exact:
    """C' = (a (q C + moved) + b) / q'."""
    c = np.zeros(1) if old is None else q * old.float64()
    value = (a * (c + moved) + b) / new_q
    doubt = (np.abs(a) * (np.abs(c) + magnitude) + np.abs(b)) / abs(new_q)
    return Exact.of(value, count * EPS * doubt)


def _batchnorm(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """gamma' = a gamma alpha;  B' = a (B + s (beta - mu)) + b + gamma'/sigma mu."""
    node = pair.old
    scale, bias, mean, sigma = batchnorm_parameters(node)
    alpha, beta = read_along(graph, node, node.inputs[0], 1, scale.size)
    a, b = written_along(graph, node, 1, scale.size)
    terms = (a * bias, a * scale / sigma * beta, -a * scale / sigma * mean, b, a * scale * alpha / sigma * mean)
    new_scale, magnitude = a * scale * alpha, sum(np.abs(term) for term in terms)
    return {
        1: Exact.of(new_scale, 8 * EPS * np.abs(new_scale)),
        2: Exact.of(np.asarray(sum(terms)), 16 * EPS * np.asarray(magnitude)),
    }


def _point(storage: Storage) -> tuple[Array, Array]:
    """Some (v, v') that a storage allows: v' = 0, or, where v is lost, v = 0."""
    lost = storage.num == 0
    return np.where(lost, 0.0, storage.beta), np.where(lost, storage.off / storage.den, 0.0)


def _sum_operand(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """y = sum of sign_i x_i: the one constant c' makes up the rest, sign (a y(v) + b - y(v'))."""
    node = pair.old
    constants = [slot for slot in range(len(node.inputs)) if node.constant(slot) is not None]
    if len(constants) != 1:
        raise NotCertifiedError("it has several constants, of which only the sum is determined")
    out = storage_of(graph, node, node.outputs[0])
    rank = out.num.ndim
    constant = node.constant(constants[0])
    assert constant is not None
    signs = {slot: -1.0 if node.op == "Sub" and slot == 1 else 1.0 for slot in range(len(node.inputs))}
    terms = [out.a * signs[constants[0]] * aligned(node, constant, rank), out.b]
    for slot, name in enumerate(node.inputs):
        if slot not in constants:
            value, held = _point(storage_of(graph, node, name))
            terms += [out.a * signs[slot] * value, -signs[slot] * held]
    value, magnitude = sum(terms[1:], terms[0]), sum((np.abs(term) for term in terms[1:]), np.abs(terms[0]))
    return {constants[0]: operand(signs[constants[0]] * value, magnitude)}


def _factor(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """y = c x: c' = a c alpha;  y = x / c: c' = c / (a alpha)."""
    node = pair.old
    slot, *_ = affine_of(node)
    x, y = (storage_of(graph, node, name) for name in (node.inputs[slot], node.outputs[0]))
    constant = node.constant(1 - slot)
    assert constant is not None
    c = aligned(node, constant, x.num.ndim)
    value = c * y.a * x.alpha if node.op == "Mul" else c / (y.a * x.alpha)
    return {1 - slot: operand(value, np.abs(value))}


def _alike(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """Concat, Max, Min, Where, Clip: a constant is stored as the output is where it ends up."""
    node = pair.old
    out = storage_of(graph, node, node.outputs[0])
    rank, found = out.num.ndim, {}
    a, b = out.a, out.b
    at = 0
    for slot, name in enumerate(node.inputs):
        constant = node.constant(slot)
        if node.op == "Concat":
            axis = node.get_int("axis", 1) % rank
            shape = node.graph.shape(name)
            size = None if shape is None else shape[axis]
            if not isinstance(size, int):
                raise NotCertifiedError("the size of its inputs is not known")
            a, b = (
                array if array.shape[axis] == 1 else array.take(range(at, at + size), axis) for array in (out.a, out.b)
            )
            at += size
        if constant is None or (node.op == "Where" and slot == 0):
            continue
        c = aligned(node, constant, rank)
        found[slot] = operand(a * c + b, np.abs(a * c) + np.abs(b))
    return found


FORMULAS: Mapping[str, Formula] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "BatchNormalization": _batchnorm,
    "Add": _sum_operand,
    "Sub": _sum_operand,
    "Sum": _sum_operand,
    "Mul": _factor,
    "Div": _factor,
    "Concat": _alike,
    "Max": _alike,
    "Min": _alike,
    "Where": _alike,
    "Clip": _alike,
}
