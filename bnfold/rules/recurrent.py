"""LSTM, GRU and RNN: their input weights take up any affine of the sequence that they read.

Source: ONNX operators LSTM, GRU, RNN -1/7/14/22.
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import Array
from bnfold.plan import Edit, NewConstant
from bnfold.rules.base import Accept, View, need_decode, only_axis
from bnfold.rules.convolution import constant_weight
from bnfold.rules.unlocks import CONSTANT, LAYER_BETWEEN, VALID
from bnfold.sums import exact_sum

FEATURES = 2
"""The axis of X that the weights contract, in both layouts."""

BIAS = 3
"""Slot of B, which holds Wb and then Rb for each direction."""


def recurrent(view: View) -> list[Accept]:
    """H_t = f(W X_t + R H_{t-1} + Wb + Rb).  W' = W alpha;  Wb' = Wb + W.beta, in every gate and direction."""
    node = view.node
    weight = constant_weight(view, 1)
    if len(weight.shape) != 3:
        raise view.refuse("unsupported-form", f"the weights of {node.op} have shape {weight.shape}", VALID)
    if any(not port.storage.is_identity for key, port in view.ports.items() if key < 0):
        raise view.refuse(
            "opaque-op",
            f"the output of {node.op} is fed back through its own nonlinear gates",
            LAYER_BETWEEN,
        )
    directions, rows, size = weight.shape
    alpha, beta = need_decode(view, only_axis(view, view.port(0), FEATURES, size))
    edits: tuple[Edit, ...] = ()
    if np.any(alpha != 1):
        edits += (NewConstant(1, "weight", weight.type, weight.shape, weight, (alpha.reshape(1, 1, -1),)),)
    if np.all(beta == 0):
        return [Accept({}, edits)]
    old = node.constant(BIAS)
    if node.input(BIAS) and old is None:
        raise view.refuse("dynamic-weight", f"the bias of {node.op} is computed at run time", CONSTANT)

    def moved() -> Array:
        own = exact_sum(weight.float64() * beta)
        return np.concatenate([own, np.zeros_like(own)], axis=1)

    shape = (directions, 2 * rows)
    return [Accept({}, (*edits, NewConstant(BIAS, "bias", old.type if old else weight.type, shape, old, (), moved)))]
