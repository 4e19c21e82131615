"""Functions of one value in float64, for constant channels: few numbers, no need to be fast.

Only functions that are finite wherever their input is: the values that a dead channel still holds go through them too.

Source: ONNX operators of the same names; attributes have the defaults of their schema.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bnfold.affine import Array
from bnfold.graph import Node


def _float32(value: float) -> float:
    return float(np.float32(value))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, e) / (1 + e))


def erf(x: Array) -> Array:
    """The error function."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def _expm1(x: Array) -> Array:
    return np.asarray(np.expm1(np.minimum(x, 0.0)))


def _elu(node: Node, x: Array) -> Array:
    return np.where(x < 0, node.get_float("alpha", 1.0) * _expm1(x), x)


def _celu(node: Node, x: Array) -> Array:
    alpha = node.get_float("alpha", 1.0)
    return np.where(x < 0, alpha * _expm1(x / alpha), x)


def _selu(node: Node, x: Array) -> Array:
    old = node.version < 6
    gamma = node.get_float("gamma", _float32(1.0507 if old else 1.05070102214813232421875))
    alpha = node.get_float("alpha", _float32(1.6732 if old else 1.67326319217681884765625))
    return gamma * np.where(x < 0, alpha * _expm1(x), x)


def _gelu(node: Node, x: Array) -> Array:
    if node.get_string("approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))))


def hard_sigmoid(node: Node, x: Array) -> Array:
    """min(max(alpha x + beta, 0), 1)."""
    alpha, beta = node.get_float("alpha", _float32(0.2)), node.get_float("beta", 0.5)
    return np.clip(alpha * x + beta, 0.0, 1.0)


def _shrink(node: Node, x: Array) -> Array:
    bias, edge = node.get_float("bias", 0.0), node.get_float("lambd", 0.5)
    return np.where(x < -edge, x + bias, np.where(x > edge, x - bias, 0.0))


OPAQUE: dict[str, Callable[[Node, Array], Array]] = {
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "Gelu": _gelu,
    "HardSwish": lambda node, x: x * np.clip(x / 6 + 0.5, 0.0, 1.0),
    "Softplus": lambda node, x: np.logaddexp(0.0, x),
    "Mish": lambda node, x: x * np.tanh(np.logaddexp(0.0, x)),
    "Swish": lambda node, x: x * sigmoid(node.get_float("alpha", 1.0) * x),
    "Shrink": _shrink,
    "ThresholdedRelu": lambda node, x: np.where(x > node.get_float("alpha", 1.0), x, 0.0),
    "Floor": lambda node, x: np.floor(x),
    "Ceil": lambda node, x: np.ceil(x),
}
"""Functions that pass constant channels and nothing else."""

ODD: dict[str, Callable[[Array], Array] | None] = {
    "Tanh": np.tanh,
    "Erf": erf,
    "Sin": np.sin,
    "Atan": np.arctan,
    "Asinh": np.arcsinh,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Sign": np.sign,
    "Round": np.rint,
    **dict.fromkeys(("Tan", "Asin", "Atanh", "Sinh")),
}
"""f(-x) = -f(x); None where f is not finite everywhere, or soon overflows: no constant channel passes."""

EVEN: dict[str, Callable[[Array], Array] | None] = {"Cos": np.cos, "Cosh": None}
"""f(-x) = f(x), likewise."""
