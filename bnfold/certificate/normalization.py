"""Normalisations by the tensor's own statistics: what scale, bias and epsilon should be.

``v = alpha*v' + beta`` on the input, ``y' = a*y + b`` on the output. The numeric test decides about beta.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bnfold.affine import Array
from bnfold.certificate.formulas import Formula
from bnfold.certificate.ports import decode_of, encode_of, one_for_all, operand, vector
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import EPS, Exact
from bnfold.certificate.wiring import GraphPair, Pair


def epsilon(graph: GraphPair, pair: Pair) -> dict[str, float]:
    """e' = e / alpha^2, where every channel that is not dead has the same abs(alpha); nothing where all are dead."""
    alpha, _ = decode_of(graph, pair.old, pair.old.inputs[0])
    sizes = np.abs(alpha[alpha != 0])
    if not sizes.size:
        return {}
    if np.ptp(sizes) > 64 * EPS * np.max(sizes):
        raise NotCertifiedError("its channels are scaled differently, and it has one epsilon")
    return {"epsilon": pair.old.get_float("epsilon", float(np.float32(1e-5))) / float(sizes.flat[0]) ** 2}


def _by_channel(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """g' = a sign(alpha) g;  h' = a h + b; of one value per channel, or per group in GroupNormalization-18."""
    node = pair.old
    shape = node.graph.shape(node.inputs[0])
    size = None if shape is None else shape[1]
    if not isinstance(size, int):
        raise NotCertifiedError("the number of its channels is not known")
    alpha, _ = decode_of(graph, node, node.inputs[0])
    others = [axis for axis in range(alpha.ndim) if axis != 1]
    arrays = (np.sign(alpha), *encode_of(graph, node))
    vectors = [vector(one_for_all(array, others), 1, size) for array in arrays]
    if node.op == "GroupNormalization" and node.version < 21:
        vectors = [v.reshape(node.get_int("num_groups", 1), -1)[:, 0] for v in vectors]
    return _scale_and_bias(pair, *vectors)


def _by_axis(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """As above, on the axes from `axis` on; a missing h is 0."""
    node = pair.old
    alpha, _ = decode_of(graph, node, node.inputs[0])
    a, b = encode_of(graph, node)
    first = node.get_int("axis", -1) % a.ndim
    sign = np.sign(one_for_all(alpha, range(alpha.ndim))).reshape(())
    return _scale_and_bias(pair, sign, *(one_for_all(v, range(first))[(0,) * first] for v in (a, b)))


def _scale_and_bias(pair: Pair, sign: Array, a: Array, b: Array) -> Mapping[int, Exact]:
    found: dict[int, Exact] = {}
    g, h = pair.old.constant(1), pair.old.constant(2)
    if g is not None:
        scale = a * sign * g.float64()
        found[1] = operand(scale, np.abs(scale))
    if h is not None:
        found[2] = operand(a * h.float64() + b, np.abs(a * h.float64()) + np.abs(b))
    elif g is not None and not pair.old.input(2):
        shape = np.broadcast_shapes(g.shape, b.shape)
        found[2] = operand(np.broadcast_to(b, shape), np.abs(np.broadcast_to(b, shape)))
    return found


FORMULAS: Mapping[str, Formula] = {
    "InstanceNormalization": _by_channel,
    "GroupNormalization": _by_channel,
    "LayerNormalization": _by_axis,
    "RMSNormalization": _by_axis,
}
