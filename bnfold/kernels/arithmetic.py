"""Elementwise functions of several tensors, and matrix products."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from bnfold.kernels.base import Array, Call, Kernel, is_float, kernel


def aligned(call: Call, a: Array, b: Array) -> Array:
    """The second operand, shaped for numpy: below opset 7 `axis` says at which axis of `a` it starts."""
    axis = call.attributes.get("axis")
    if call.version >= 7 or not call.get("broadcast", 0) or axis is None or b.ndim == 0:
        return b
    start = int(axis) % max(1, a.ndim)
    return b.reshape((1,) * start + b.shape + (1,) * max(0, a.ndim - start - b.ndim))


def _binary(function: Any) -> Kernel:
    def apply(call: Call, a: Array, b: Array) -> Array:
        y: Array = function(a, aligned(call, a, b))
        return y

    return apply


def _divide(a: Array, b: Array) -> Array:
    if is_float(a) or is_float(b):
        quotient: Array = a / b
        return quotient
    # Integers truncate towards zero; numpy rounds down.
    quotient = a // b
    quotient += ((a % b != 0) & ((a < 0) != (b < 0))).astype(quotient.dtype)
    return quotient


def _power(a: Array, b: Array) -> Array:
    y: Array = np.power(a, b) if is_float(a) else np.power(a.astype(np.float64), b).astype(a.dtype)
    return y


for _op, _function in {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Pow": _power,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}.items():
    kernel(_op)(_binary(_function))


@kernel("Mod")
def mod(call: Call, a: Array, b: Array) -> Array:
    """The remainder: with the divisor's sign, or with fmod the dividend's."""
    y: Array = np.fmod(a, b) if call.get("fmod", 0) else np.mod(a, b)
    return y


@kernel("Sum")
def add_all(call: Call, *terms: Array) -> Array:
    """All inputs added."""
    return functools.reduce(np.add, terms)


@kernel("Mean")
def mean_all(call: Call, *terms: Array) -> Array:
    """All inputs added, over their number."""
    y: Array = functools.reduce(np.add, terms) / len(terms)
    return y


@kernel("Max")
def maximum(call: Call, *terms: Array) -> Array:
    """The largest of the inputs, element by element."""
    return functools.reduce(np.maximum, terms)


@kernel("Min")
def minimum(call: Call, *terms: Array) -> Array:
    """The smallest of the inputs, element by element."""
    return functools.reduce(np.minimum, terms)


@kernel("Where")
def where(call: Call, condition: Array, x: Array, y: Array) -> Array:
    """x where the condition holds, else y."""
    return np.where(condition, x, y)


@kernel("MatMul")
def matmul(call: Call, a: Array, b: Array) -> Array:
    """numpy.matmul."""
    y: Array = np.matmul(a, b)
    return y


@kernel("Gemm")
def gemm(call: Call, a: Array, b: Array, c: Array | None = None) -> Array:
    """alpha * A' * B' + beta * C."""
    left = a.T if call.get("transA", 0) else a
    right = b.T if call.get("transB", 0) else b
    product = np.matmul(left, right)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if not is_float(product):
        y: Array = (alpha * product + (0 if c is None else beta * c)).astype(product.dtype)
        return y
    y = alpha * product
    return y if c is None else y + beta * c


@kernel("Einsum")
def einsum(call: Call, *operands: Array) -> Array:
    """numpy.einsum."""
    y: Array = np.einsum(call.get("equation").replace(" ", ""), *operands, optimize=True)
    return y
