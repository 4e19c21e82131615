"""What the constants of a node should be, derived once more from how the tensors around it are stored.

Everywhere ``v = alpha*v' + beta`` on an input, ``y' = a*y + b`` on the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from bnfold.affine import Array
from bnfold.certificate.affines import batchnorm_parameters
from bnfold.certificate.operands import OPERANDS
from bnfold.certificate.ports import decode_of, encode_of, read_along, vector, weight_of, written_along
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

    if not beta.any():
        moved = magnitude = np.zeros(outputs)
    elif not transposed:
        moved, magnitude = _sum(w.shape, forward, outputs)
    else:
        if np.prod(w.shape[2:]) != 1:
            raise NotCertifiedError("a shift does not pass a transposed convolution whose outputs see several taps")
        terms = (w.float64().reshape(rows, columns) * beta[:, None]).reshape(group, -1, columns)
        moved, magnitude = terms.sum(1).reshape(-1), np.abs(terms).sum(1).reshape(-1)
    count = math.prod(w.shape) // outputs + 8
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
    """gamma' = a gamma alpha;  B' = a (B + s (beta - mu + alpha mu')) + b;  mu' is mu, or (mu - beta)/alpha."""
    node = pair.old
    scale, bias, mean, sigma = batchnorm_parameters(node)
    alpha, beta = read_along(graph, node, node.inputs[0], 1, scale.size)
    a, b = written_along(graph, node, 1, scale.size)
    stored = pair.new.constant(3)
    if stored is None or stored.shape != mean.shape:
        raise NotCertifiedError("its new mean is no constant of one number for each channel")
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(alpha == 0, mean, (mean - beta) / alpha)
    moved = np.abs(stored.float64() - own) < np.abs(stored.float64() - mean)
    center, s = np.where(moved, own, mean), scale / sigma
    through = np.where(moved, 0.0, a * s * beta), np.where(moved, 0.0, a * s * mean * (alpha - 1))
    doubt = np.where(moved, 0.0, np.abs(a * s) * (np.abs(beta) + np.abs(mean) * (1 + np.abs(alpha))))
    new_scale, far = a * scale * alpha, (np.abs(mean) + np.abs(beta)) / np.where(moved, np.abs(alpha), 1.0)
    return {
        1: Exact.of(new_scale, 8 * EPS * np.abs(new_scale)),
        2: Exact.of(a * bias + sum(through) + b, 16 * EPS * (np.abs(a * bias) + doubt + np.abs(b))),
        3: Exact.of(center, 8 * EPS * np.where(moved, far, 0.0)),
    }


FORMULAS: Mapping[str, Formula] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "BatchNormalization": _batchnorm,
    **OPERANDS,
}
