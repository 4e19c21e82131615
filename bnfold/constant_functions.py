"""Functions of constants: what exporters leave of weights and gates that a network computes from its parameters.

Weight normalisation, low-rank updates, learnt gates between branches, shapes for an Expand. All in float64, never
rounded in between; what a rounding could turn over, like a comparison of floats, is not evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

Value = NDArray[np.generic]

MOST_WORK = 1 << 32
"""Multiplications that one product of constants may take."""


@dataclass(frozen=True)
class Arguments:
    """What a function is given: floats are float64."""

    values: Sequence[Value]
    attributes: Mapping[str, onnx.AttributeProto]
    opset: int
    outputs: int
    """How many outputs the node lists, those without a name too."""
    check: Callable[[Sequence[int]], object]
    """Raises `ValueError` where there is no room for an array of this shape."""
    multiply: Callable[[int], object]
    """Raises `ValueError` where so many multiplications are too many."""

    def int(self, name: str, default: int) -> int:
        """An attribute that is a number."""
        return self.attributes[name].i if name in self.attributes else default

    @property
    def floats(self) -> list[NDArray[np.float64]]:
        """The values, which must be floats; `ValueError` where they are not."""
        if any(value.dtype != np.float64 for value in self.values):
            raise ValueError("no floats")
        return [np.asarray(value, np.float64) for value in self.values]


Function = Callable[[Arguments], Value]


def _of_one(compute: Callable[[NDArray[np.float64]], Value]) -> Function:
    def function(given: Arguments) -> Value:
        (value,) = given.floats
        return np.asarray(compute(value))

    return function


def _softmax(given: Arguments) -> Value:
    """Along one axis; before opset 13 along all from that one on."""
    (x,) = given.floats
    axis = given.int("axis", -1 if given.opset >= 13 else 1)
    axes = (axis,) if given.opset >= 13 else tuple(range(axis % max(1, x.ndim), x.ndim))
    powers = np.exp(x - x.max(axis=axes, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axes, keepdims=True))


def _clip(given: Arguments) -> Value:
    x, *bounds = given.floats
    if given.opset < 11:
        bounds = [np.asarray(given.attributes[n].f, np.float64) for n in ("min", "max") if n in given.attributes]
        if len(bounds) == 1 and "max" in given.attributes:
            return np.asarray(np.minimum(x, bounds[0]))
    x = np.maximum(x, bounds[0]) if bounds else x
    return np.asarray(np.minimum(x, bounds[1]) if len(bounds) > 1 else x)


def _reduced(compute: Callable[..., Value], *, whole: bool = False) -> Function:
    """A reduction along axes; `whole` where integers are fine too."""

    def function(given: Arguments) -> Value:
        x = given.values[0]
        if not whole and x.dtype != np.float64:
            raise ValueError("no floats")
        axes = list(given.attributes["axes"].ints) if "axes" in given.attributes else []
        axes = np.asarray(given.values[1], np.int64).ravel().tolist() if len(given.values) > 1 else axes
        if not axes and given.int("noop_with_empty_axes", 0) == 1:
            raise ValueError("runtimes differ in what this is")
        along = tuple(axes) if axes else tuple(range(x.ndim))
        return np.asarray(compute(x, axis=along, keepdims=given.int("keepdims", 1) == 1)).astype(x.dtype)

    return function


def _product(given: Arguments) -> Value:
    one, other = given.floats
    rows, columns = one.shape[-2:-1], other.shape[-1:] if other.ndim > 1 else ()
    shape = (*np.broadcast_shapes(one.shape[:-2], other.shape[:-2]), *rows, *columns)
    given.check(shape)
    work = math.prod(shape) * one.shape[-1]
    if work > MOST_WORK:
        raise ValueError("too much work")
    given.multiply(work)
    return np.asarray(one @ other)


def _equal(given: Arguments) -> Value:
    one, other = given.values
    if one.dtype.kind not in "iub":
        raise ValueError("a rounding would show")
    return np.asarray(np.equal(one, other))


def _where(given: Arguments) -> Value:
    condition, one, other = given.values
    given.check(np.broadcast_shapes(*(value.shape for value in given.values)))
    return np.where(condition, one, other)


def _batch_normalization(given: Arguments) -> Value:
    """By the stored statistics; in training mode by those of the batch, which is a constant too."""
    x, *parameters = given.floats
    training = given.int("training_mode", 0) == 1
    if given.opset < 14 and (training or given.outputs > 1):
        raise ValueError("training before opset 14")
    if (given.opset < 7 and not given.int("is_test", 0)) or not given.int("spatial", 1):
        raise ValueError("statistics of the batch, or of every position")
    if any(parameter.shape != x.shape[1:2] for parameter in parameters) or x.ndim < 2:
        raise ValueError("not one number for each channel")
    along = (-1,) + (1,) * (x.ndim - 2)
    scale, bias, mean, variance = (parameter.reshape(along) for parameter in parameters)
    if training:
        axes = (0, *range(2, x.ndim))
        mean, variance = x.mean(axis=axes, keepdims=True)[0], x.var(axis=axes, keepdims=True)[0]
    epsilon = given.attributes["epsilon"].f if "epsilon" in given.attributes else float(np.float32(1e-5))
    y = (x - mean) * (scale / np.sqrt(variance + epsilon)) + bias
    if not np.isfinite(y).all():
        raise ValueError("not finite")
    return np.asarray(y)


def _squares(x: NDArray[np.float64], **how: object) -> Value:
    return np.asarray(np.sum(x**2, **how))  # type: ignore[call-overload]


FUNCTIONS: Mapping[str, Function] = {
    "Relu": _of_one(lambda x: np.maximum(x, 0.0)),
    "Sigmoid": _of_one(lambda x: 1.0 / (1.0 + np.exp(-x))),
    "Tanh": _of_one(np.tanh),
    "Softplus": _of_one(lambda x: np.logaddexp(x, 0.0)),
    "Softmax": _softmax,
    "Clip": _clip,
    "ReduceSum": _reduced(np.sum, whole=True),
    "ReduceProd": _reduced(np.prod, whole=True),
    "ReduceMax": _reduced(np.max, whole=True),
    "ReduceMin": _reduced(np.min, whole=True),
    "ReduceMean": _reduced(np.mean),
    "ReduceL1": _reduced(lambda x, **how: np.sum(np.abs(x), **how)),
    "ReduceL2": _reduced(lambda x, **how: np.sqrt(_squares(x, **how))),
    "ReduceSumSquare": _reduced(_squares),
    "MatMul": _product,
    "BatchNormalization": _batch_normalization,
    "Equal": _equal,
    "Where": _where,
}
"""By operator."""

TYPES: Mapping[str, int] = {"Equal": TensorProto.BOOL}
"""Element types of results that are not those of the inputs."""
