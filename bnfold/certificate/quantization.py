"""QuantizeLinear and DequantizeLinear: what their scales and zero points should be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bnfold.affine import Array
from bnfold.certificate.formulas import Formula
from bnfold.certificate.ports import decode_of, encode_of, operand, weight_of
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import Exact
from bnfold.certificate.wiring import GraphPair, Pair


def _parameters(pair: Pair, factor: Array) -> Mapping[int, Exact]:
    """s' = s times the factor, along the axis of s; a zero point is repeated where s is."""
    node, scale = pair.old, weight_of(pair.old, 1).float64()
    for axis in range(factor.ndim):
        if factor.size and np.all(factor == factor.take([0], axis)):
            factor = factor.take([0], axis)
    varying = [axis for axis, size in enumerate(factor.shape) if size > 1]
    if scale.ndim < 2 or not varying:
        new_axis = pair.new.get_int("axis", 1) % factor.ndim
        if len(varying) > 1 or (varying and varying[0] != new_axis):
            raise NotCertifiedError("its scales do not stand along the axis on which a tensor is stored differently")
        factor = factor.reshape(-1) if varying else factor.reshape(-1)[:1].reshape((1,) * scale.ndim)
    value = scale * factor
    found = {1: operand(value, np.abs(value))}
    zero = node.constant(2)
    if zero is not None and scale.ndim < 2:
        repeated = np.broadcast_to(zero.float64(), value.shape)
        found[2] = Exact.of(repeated, np.zeros_like(repeated))
    return found


def _dequantize(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """s' = a s; the numeric test sees that there is no shift."""
    a, _ = encode_of(graph, pair.old)
    return _parameters(pair, a)


def _quantize(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """s' = s / alpha."""
    alpha, _ = decode_of(graph, pair.old, pair.old.inputs[0])
    return _parameters(pair, 1 / alpha)


FORMULAS: Mapping[str, Formula] = {"DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
