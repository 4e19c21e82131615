"""Functions of one tensor, element by element.

Source: ONNX operators Relu, LeakyRelu, PRelu, Sigmoid, Tanh, Abs and their like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Array, Storage
from bnfold.plan import NewConstant
from bnfold.rules import functions
from bnfold.rules.base import OUT, Accept, Rule, View, arriving, compress, faults, lift, refuse_signs
from bnfold.rules.dead import passes_constants
from bnfold.rules.elementwise import refuse_shift, same_on_both
from bnfold.rules.float_attributes import set_float
from bnfold.rules.unlocks import NOT_ZERO, OPSET_7, OTHER_OPERATOR, POSITIVE


def homogeneous(view: View, storage: Storage) -> NDArray[np.bool_]:
    """Refuse what f(a x) = a f(x) for a > 0 does not pass; returns where the scale is negative."""
    lost = storage.num == 0
    if not storage.is_scale:
        refuse_shift(view, storage, ~lost & (storage.off != 0))
    if np.count_nonzero(lost) and np.any(lost & (storage.off * storage.den < 0)):
        raise view.refuse("zero-scale", f"{view.node.op} would cut off a constant channel", NOT_ZERO)
    return np.asarray(storage.num * storage.den < 0)


@passes_constants(lambda view, values: np.maximum(values[0], 0.0))
def relu(view: View) -> list[Accept]:
    """y = max(x, 0): a > 0, b = 0 pass."""

    def check(storage: Storage) -> Storage:
        homogeneous(view, storage)
        refuse_signs(view, storage)
        return storage

    return same_on_both(view, check)


def _kinked(view: View, slopes: Array | None) -> tuple[Accept, NDArray[np.bool_]]:
    """y = x, or k x below zero; returns also where k becomes 1/k.

    a > 0, b = 0 pass. Where x is stored with alpha < 0, y is stored with alpha k and k' = 1/k.
    """
    x, y = view.port(0), view.port(OUT)
    backwards = y.fixed and not x.fixed
    storage = y.storage if backwards else x.storage
    negative = homogeneous(view, storage)
    if not np.any(negative):
        return view.settle({0 if backwards else OUT: storage}), negative
    if slopes is None:
        refuse_signs(view, storage)
        raise AssertionError
    blocked = negative & ((slopes <= 0) if backwards else (slopes == 0))
    if np.any(blocked):
        which = "positive" if backwards else "non-zero"
        text = f"{view.node.op} passes a negative scale only where its slope is {which}"
        raise view.refuse("negative-scale", text, POSITIVE, *faults(blocked, arriving(view, storage)[0]))
    factor = compress(np.where(negative, slopes, 1.0))
    moved = (
        Storage(storage.den, storage.num * factor, storage.off)
        if backwards
        else Storage(storage.den * factor, storage.num, storage.off)
    )
    return view.settle({0 if backwards else OUT: moved}), negative


def _slopes(view: View) -> Array | None:
    """The slopes of a PRelu, in the rank of its input; None where they are computed at run time."""
    constant, rank = view.node.constant(1), view.port(0).rank
    if constant is None:
        return None
    slopes = constant.float64()
    if view.node.version < 7 and slopes.ndim == 1:  # one slope for each channel
        slopes = slopes.reshape(-1, *(1,) * (rank - 2))
    if slopes.ndim > rank:
        raise view.refuse(
            "unsupported-form",
            "the slopes of PRelu have more axes than its input",
            "reshape the slopes to the axes of the input",
        )
    return lift(slopes, rank)


def _prelu(view: View, values: Sequence[Array]) -> Array:
    slopes = _slopes(view)
    if slopes is None:
        raise view.refuse("zero-scale", "PRelu has slopes computed at run time", NOT_ZERO)
    return np.where(values[0] < 0, values[0] * slopes, values[0])


@passes_constants(_prelu)
def prelu(view: View) -> list[Accept]:
    """y = x, or k x below zero: a > 0 passes; a < 0 where k > 0 (on the way forward k != 0), with k' = 1/k."""
    slopes = _slopes(view)
    accept, flipped = _kinked(view, slopes)
    if slopes is None or not np.any(flipped):
        return [accept]
    constant = view.node.constant(1)
    assert constant is not None
    with np.errstate(over="ignore"):
        factor = compress(np.where(flipped, slopes, 1.0) ** -2.0)
    if view.node.version < 7:
        if any(size != 1 for axis, size in enumerate(factor.shape) if axis != 1):
            text = "before opset 7 PRelu has one slope for each channel"
            raise view.refuse("unsupported-form", text, OPSET_7)
        factor = factor.reshape(-1)
    while factor.ndim > len(constant.shape) and factor.shape[0] == 1:
        factor = factor[0]
    shape = np.broadcast_shapes(constant.shape, factor.shape)
    return [Accept(accept.assign, (NewConstant(1, "slope", constant.type, shape, constant, (factor,)),))]


def _alpha(view: View) -> float:
    return view.node.get_float("alpha", float(np.float32(0.01)))


@passes_constants(lambda view, values: np.where(values[0] < 0, values[0] * _alpha(view), values[0]))
def leaky_relu(view: View) -> list[Accept]:
    """y = x, or k x below zero: a > 0 passes; a < 0 for all channels where 1/k is a float32, k' = 1/k."""
    k = _alpha(view)
    accept, flipped = _kinked(view, np.full((1,) * view.port(0).rank, k))
    if not np.any(flipped):
        return [accept]
    if not np.all(flipped):
        refuse_signs(view, next(view.port(key).storage for key in (0, OUT) if view.port(key).fixed), flipped)
    return [Accept(accept.assign, (set_float(view, "alpha", 1.0 / k, exactly=True),))]


def _signs(view: View, storage: Storage) -> NDArray[np.bool_]:
    """Where v' = -v; refuses what is not v' = +-v."""
    if np.any(storage.off != 0) or np.any(np.abs(storage.num) != np.abs(storage.den)):
        raise view.refuse("opaque-op", f"{view.node.op} is not affine: it passes a sign at most", OTHER_OPERATOR)
    return np.asarray(storage.num * storage.den < 0)


def odd(function: Callable[[Array], Array] | None) -> Rule:
    """f(-x) = -f(x): only a sign passes."""

    def rule(view: View) -> list[Accept]:
        def check(storage: Storage) -> Storage:
            _signs(view, storage)
            return storage

        return same_on_both(view, check)

    return rule if function is None else passes_constants(lambda view, values: function(values[0]))(rule)


def even(function: Callable[[Array], Array] | None) -> Rule:
    """f(-x) = f(x): a sign vanishes."""

    def rule(view: View) -> list[Accept]:
        x, y = view.port(0), view.port(OUT)
        _signs(view, x.storage)
        return [view.settle({OUT: Storage.identity(y.rank)})]

    return rule if function is None else passes_constants(lambda view, values: function(values[0]))(rule)


def _mirrored(view: View) -> list[Accept]:
    x, y = view.port(0), view.port(OUT)
    one = np.ones((1,) * x.rank)
    if y.fixed and not x.fixed:
        away = y.storage.num * y.storage.den < 0
        flip = Storage(np.where(away, -1.0, 1.0), one, np.where(away, -1.0, 0.0))  # y' = 1 - y
        if not y.storage.agrees(flip):
            raise view.refuse("opaque-op", f"{view.node.op} is not affine: at most 1 - y passes", OTHER_OPERATOR)
        return [view.settle({0: Storage.encode(np.where(away, -1.0, 1.0), np.zeros_like(one))})]
    away = _signs(view, x.storage)
    return [view.settle({OUT: Storage.encode(np.where(away, -1.0, 1.0), np.where(away, 1.0, 0.0))})]


@passes_constants(lambda view, values: functions.sigmoid(values[0]))
def sigmoid(view: View) -> list[Accept]:
    """f(-x) = 1 - f(x): where x is stored as -x, y is stored as 1 - y."""
    return _mirrored(view)


@passes_constants(lambda view, values: functions.hard_sigmoid(view.node, values[0]))
def hard_sigmoid(view: View) -> list[Accept]:
    """As Sigmoid, where it is symmetric: beta = 1/2."""
    if view.node.get_float("beta", 0.5) == 0.5:
        return _mirrored(view)
    return _opaque(view)


def _opaque(view: View) -> list[Accept]:
    for key in (0, OUT):
        if not view.port(key).storage.is_identity:
            raise view.refuse("opaque-op", f"{view.node.op} is not affine in this tensor", OTHER_OPERATOR)
    return [Accept()]


def opaque(op: str) -> Rule:
    """Nothing passes but channels that are constant."""
    function = functions.OPAQUE[op]
    return passes_constants(lambda view, values: function(view.node, values[0]))(_opaque)


@passes_constants(lambda view, values: np.abs(values[0]))
def absolute(view: View) -> list[Accept]:
    """y = abs(x): b = 0, a passes as abs(a); backwards only a > 0."""
    x, y = view.port(0), view.port(OUT)
    backwards = y.fixed and not x.fixed
    storage = y.storage if backwards else x.storage
    refuse_shift(view, storage, (storage.num != 0) & (storage.off != 0))
    if backwards:
        refuse_signs(view, storage)
        return [view.settle({0: storage})]
    return [view.settle({OUT: Storage(np.abs(storage.den), np.abs(storage.num), np.abs(storage.off))})]
