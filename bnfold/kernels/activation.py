"""Elementwise functions of one tensor (and their parameters)."""

from __future__ import annotations

import numpy as np

from bnfold.kernels.base import Array, Call, Kernel, is_float, kernel

# W. J. Cody, "Rational Chebyshev approximations for the error function", Math. Comp. 23 (1969): good to 1e-16.
_ERF_SMALL = (
    (3.16112374387056560e00, 1.13864154151050156e02, 3.77485237685302021e02, 3.20937758913846947e03),
    1.85777706184603153e-1,
    (2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03, 2.84423683343917062e03),
)
_ERFC_LARGE = (
    (
        5.64188496988670089e-1,
        8.88314979438837594e00,
        6.61191906371416295e01,
        2.98635138197400131e02,
        8.81952221241769090e02,
        1.71204761263407058e03,
        2.05107837782607147e03,
        1.23033935479799725e03,
    ),
    2.15311535474403846e-8,
    (
        1.57449261107098347e01,
        1.17693950891312499e02,
        5.37181101862009858e02,
        1.62138957456669019e03,
        3.29079923573345963e03,
        4.36261909014324716e03,
        3.43936767414372164e03,
        1.23033935480374942e03,
    ),
)


def _rational(y: Array, coefficients: tuple[tuple[float, ...], float, tuple[float, ...]]) -> Array:
    top, leading, bottom = coefficients
    numerator, denominator = leading * y, y
    for a, b in zip(top[:-1], bottom[:-1], strict=True):
        numerator, denominator = (numerator + a) * y, (denominator + b) * y
    quotient: Array = (numerator + top[-1]) / (denominator + bottom[-1])
    return quotient


def erf(x: Array) -> Array:
    """The error function, to about 1e-16."""
    size = np.abs(x)
    y = np.empty_like(size)
    small = size <= 0.46875
    y[small] = size[small] * _rational(size[small] ** 2, _ERF_SMALL)
    # Past 6 the result is 1 in float64; the clip also keeps infinities out of the polynomials.
    large = np.minimum(size[~small], 6.0)
    y[~small] = 1 - _rational(large, _ERFC_LARGE) * np.exp(-large * large)
    signed: Array = np.where(np.isnan(x), x, np.copysign(y, x))
    return signed


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, 1.0, e) / (1 + e)
    return y


@kernel("Sigmoid")
def _sigmoid(call: Call, x: Array) -> Array:
    return sigmoid(x)


@kernel("Erf")
def _erf(call: Call, x: Array) -> Array:
    return erf(x) if is_float(x) else erf(x.astype(np.float64)).astype(x.dtype)


@kernel("Gelu")
def gelu(call: Call, x: Array) -> Array:
    """x * Phi(x), or the tanh approximation of it."""
    if call.get("approximate", "none") == "tanh":
        y: Array = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return y
    exact: Array = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    return exact


@kernel("Relu")
def relu(call: Call, x: Array) -> Array:
    """max(x, 0)."""
    y: Array = np.maximum(x, 0)
    return y


@kernel("LeakyRelu")
def leaky_relu(call: Call, x: Array) -> Array:
    """x, or alpha * x below 0."""
    return np.where(x < 0, call.get("alpha") * x, x)


@kernel("PRelu")
def prelu(call: Call, x: Array, slope: Array) -> Array:
    """x, or slope * x below 0; below opset 7 a slope of one axis is per channel."""
    if call.version < 7 and slope.ndim == 1 and slope.size > 1:
        slope = slope.reshape((-1,) + (1,) * (x.ndim - 2))
    return np.where(x < 0, slope * x, x)


@kernel("ThresholdedRelu")
def thresholded_relu(call: Call, x: Array) -> Array:
    """x where it is above alpha, else 0."""
    return np.where(x > call.get("alpha"), x, 0.0)


@kernel("Clip")
def clip(call: Call, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """min(max(x, low), high); below opset 11 the bounds are attributes."""
    bottom = call.attributes.get("min") if call.version < 11 else low
    top = call.attributes.get("max") if call.version < 11 else high
    y = x if bottom is None else np.maximum(x, bottom)
    return y if top is None else np.minimum(y, top)


@kernel("HardSigmoid")
def hard_sigmoid(call: Call, x: Array) -> Array:
    """min(max(alpha * x + beta, 0), 1)."""
    y: Array = np.clip(call.get("alpha") * x + call.get("beta"), 0, 1)
    return y


@kernel("HardSwish")
def hard_swish(call: Call, x: Array) -> Array:
    """x * min(max(x / 6 + 0.5, 0), 1)."""
    y: Array = x * np.clip(x / 6 + 0.5, 0, 1)
    return y


@kernel("Elu")
def elu(call: Call, x: Array) -> Array:
    """x, or alpha * (exp(x) - 1) below 0."""
    return np.where(x < 0, call.get("alpha") * np.expm1(np.minimum(x, 0)), x)


@kernel("Celu")
def celu(call: Call, x: Array) -> Array:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    alpha = call.get("alpha")
    y: Array = np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))
    return y


@kernel("Selu")
def selu(call: Call, x: Array) -> Array:
    """gamma * x, or gamma * alpha * (exp(x) - 1) below 0 (opset 1 has other defaults: they come from the schema)."""
    gamma, alpha = call.get("gamma"), call.get("alpha")
    y: Array = np.where(x > 0, gamma * x, gamma * alpha * np.expm1(np.minimum(x, 0)))
    return y


@kernel("Softplus")
def softplus(call: Call, x: Array) -> Array:
    """log(1 + exp(x))."""
    y: Array = np.logaddexp(0, x)
    return y


@kernel("Softsign")
def softsign(call: Call, x: Array) -> Array:
    """x / (1 + abs(x))."""
    y: Array = x / (1 + np.abs(x))
    return y


@kernel("Mish")
def mish(call: Call, x: Array) -> Array:
    """x * tanh(softplus(x))."""
    y: Array = x * np.tanh(np.logaddexp(0, x))
    return y


@kernel("Swish")
def swish(call: Call, x: Array) -> Array:
    """x * sigmoid(alpha * x)."""
    y: Array = x * sigmoid(call.get("alpha", 1.0) * x)
    return y


@kernel("Shrink")
def shrink(call: Call, x: Array) -> Array:
    """x moved towards 0 by bias outside [-lambd, lambd], 0 inside."""
    bias, edge = call.get("bias"), call.get("lambd")
    y: Array = np.where(x < -edge, x + bias, np.where(x > edge, x - bias, 0)).astype(x.dtype)
    return y


@kernel("Reciprocal")
def reciprocal(call: Call, x: Array) -> Array:
    """1 / x."""
    y: Array = 1 / x
    return y


def _unary(function: np.ufunc) -> Kernel:
    def apply(call: Call, x: Array) -> Array:
        y: Array = function(x)
        return y

    return apply


for _op, _function in {
    "Abs": np.abs,
    "Neg": np.negative,
    "Ceil": np.ceil,
    "Floor": np.floor,
    "Round": np.rint,
    "Sqrt": np.sqrt,
    "Exp": np.exp,
    "Log": np.log,
    "Sin": np.sin,
    "Cos": np.cos,
    "Tan": np.tan,
    "Asin": np.arcsin,
    "Acos": np.arccos,
    "Atan": np.arctan,
    "Sinh": np.sinh,
    "Cosh": np.cosh,
    "Tanh": np.tanh,
    "Asinh": np.arcsinh,
    "Acosh": np.arccosh,
    "Atanh": np.arctanh,
    "Sign": np.sign,
    "Not": np.logical_not,
    "BitwiseNot": np.bitwise_not,
    "IsNaN": np.isnan,
}.items():
    kernel(_op)(_unary(_function))


@kernel("IsInf")
def is_inf(call: Call, x: Array) -> Array:
    """Where x is infinite, of the signs asked for."""
    y: Array = (np.isposinf(x) & bool(call.get("detect_positive", 1))) | (
        np.isneginf(x) & bool(call.get("detect_negative", 1))
    )
    return y
