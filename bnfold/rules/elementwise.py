"""Sums, gates, and functions of one tensor.

Source: ONNX operators Add, Sub, Sum, Mean, Mul, Div, Relu, LeakyRelu, PRelu and their like.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bnfold.affine import Array, Storage, snap
from bnfold.graph import Shape
from bnfold.plan import Edit
from bnfold.rules.base import (
    OUT,
    Accept,
    Port,
    Refused,
    Rule,
    View,
    channels_where,
    compress,
    lift,
    need_encode,
    restored_constant,
    varies_on,
)


def add(view: View) -> list[Accept]:
    """y = sum of sign_i x_i: every port takes the same scale; the shifts balance, one free port takes the rest."""
    node = view.node
    _refuse_axis(view)
    signs = {slot: -1.0 if node.op == "Sub" and slot == 1 else 1.0 for slot in range(len(node.inputs))}
    keys = [*signs, OUT]
    out = view.port(OUT)
    lead = next((key for key in keys if view.port(key).fixed and not view.port(key).storage.is_identity), None)
    if lead is None:
        lead = next((key for key in keys if view.port(key).fixed), OUT)
    a = lift(need_encode(view, view.port(lead).storage)[0], out.rank)
    shifts: dict[int, Array] = {}
    for key in keys:
        port = view.port(key)
        own_a, own_b = need_encode(view, port.storage)
        if port.fixed or port.storage.is_scale:
            shifts[key] = lift(own_b, out.rank)
        else:  # the shift is relative to what is stored: it scales along
            if np.any(own_a == 0):
                raise view.refuse("zero-scale", "a constant channel meets one that varies")
            shifts[key] = lift(own_b, out.rank) * a / lift(own_a, out.rank)
    terms = [signs[key] * shifts[key] for key in signs]
    rest = snap(shifts[OUT] - sum(terms[1:], terms[0]), shifts[OUT], *terms)

    def way(extra: dict[int, Array]) -> Accept:
        wants = {key: _fitted(view, view.port(key), a, shifts[key] + extra.get(key, 0.0), out.rank) for key in keys}
        accept = view.settle(wants)
        return Accept(accept.assign, _constant_edits(view, signs))

    if np.all(rest == 0):
        return [way({})]
    groups: dict[str, list[int]] = {}
    for key in keys:
        if not view.port(key).fixed:
            groups.setdefault(view.port(key).name, []).append(key)
    takers = sorted(groups.values(), key=lambda group: view.port(group[0]).near)
    return first_accepted(
        [_taker(way, group, rest, signs) for group in takers], view, "conflict", "no operand is free to take the shift"
    )


def _refuse_axis(view: View) -> None:
    node = view.node
    if node.version < 7 and node.get_int("broadcast", 0) and "axis" in node.attributes:
        raise view.refuse("opaque-op", "broadcasting along an axis, as before opset 7")


def _taker(
    way: Callable[[dict[int, Array]], Accept], group: list[int], rest: Array, signs: dict[int, float]
) -> Callable[[], Accept]:
    weight = sum(signs.get(key, -1.0) for key in group)

    def take() -> Accept:
        return way(dict.fromkeys(group, rest / weight))

    return take if weight else (lambda: way({}))


def first_accepted(ways: list[Callable[[], Accept]], view: View, code: str, text: str) -> list[Accept]:
    """The ways that are accepted; where none is, the refusal of the first."""
    accepted: list[Accept] = []
    refusal: Refused | None = None
    for way in ways:
        try:
            accepted.append(way())
        except Refused as error:
            refusal = refusal or error
    if not accepted:
        raise refusal or view.refuse(code, text)
    return accepted


def _fitted(view: View, port: Port, a: Array, b: Array, rank: int) -> Storage:
    """Encode (a, b), given in the output's rank, on an operand; refuses where the operand lacks an axis."""
    shape: Shape = port.shape if port.constant is None else (None,) * rank
    return Storage.encode(*(_drop_axes(view, port, array, shape, rank) for array in (a, b)))


def _drop_axes(view: View, port: Port, array: Array, shape: Shape, rank: int) -> Array:
    array = lift(compress(array), rank)
    padded: Shape = (1,) * (rank - len(shape)) + tuple(shape)
    lacking = [axis for axis in range(rank) if array.shape[axis] != 1 and padded[axis] == 1]
    if lacking:
        raise view.refuse("lacks-axis", f"operand {port.name!r} of {view.node.op} has no axis {lacking[0]} to vary on")
    return array.reshape(array.shape[rank - len(shape) :])


def _constant_edits(view: View, signs: dict[int, float]) -> tuple[Edit, ...]:
    edits: tuple[Edit, ...] = ()
    for slot in signs:
        if view.port(slot).constant is not None:
            edits += restored_constant(view, slot, "shift")
    return edits


def mul(view: View) -> list[Accept]:
    """y = x1 x2: a scale goes to the output or to one operand, a_y = a_1 a_2; no shift passes."""
    _refuse_axis(view)
    keys = (0, 1, OUT)
    out = view.port(OUT)
    scales: dict[int, Array] = {}
    for key in keys:
        port = view.port(key)
        scale, shift = need_encode(view, port.storage)
        if np.any(shift != 0):
            raise view.refuse(
                "shift-through-nonlinear", f"a shift does not pass a product of two tensors ({port.name!r})"
            )
        scales[key] = lift(scale, out.rank)
    fixed = [key for key in keys if view.port(key).fixed]
    if np.all(scales[OUT] == scales[0] * scales[1]):
        return [Accept()]
    ways: list[Callable[[], Accept]] = []
    if OUT not in fixed:
        ways.append(lambda: view.settle({OUT: _fitted_scale(view, OUT, scales[0] * scales[1])}))
    if view.node.input(0) != view.node.input(1):
        for key, other in ((0, 1), (1, 0)):
            if key not in fixed and np.all(scales[other] != 0):
                ways.append(_operand_way(view, key, scales[OUT] / scales[other]))
    if not ways:
        agreed = view.settle({OUT: _fitted_scale(view, OUT, scales[0] * scales[1])})
        return [agreed]
    return first_accepted(ways, view, "conflict", "no operand is free to take the scale")


def _operand_way(view: View, key: int, scale: Array) -> Callable[[], Accept]:
    return lambda: view.settle({key: _fitted_scale(view, key, scale)})


def _fitted_scale(view: View, key: int, scale: Array) -> Storage:
    return _fitted(view, view.port(key), scale, np.zeros((1,) * scale.ndim), scale.ndim)


def same_on_both(view: View, check: Callable[[Storage], Storage]) -> list[Accept]:
    """Input 0 and output 0 are stored alike; `check` refuses, or says what the output is for this input."""
    x, y = view.port(0), view.port(OUT)
    if x.fixed or not y.fixed:
        return [view.settle({OUT: check(x.storage)})]
    check(y.storage)
    if np.any(y.storage.den == 0):
        raise view.refuse("zero-scale", f"a dead channel cannot go backwards through {view.node.op}")
    return [view.settle({0: y.storage})]


def homogeneous(function: Callable[[View, Array], Array]) -> Rule:
    """f(a x) = a f(x) for a > 0 only: Relu and its like. A constant channel passes as f of its value."""

    def rule(view: View) -> list[Accept]:
        def check(storage: Storage) -> Storage:
            dead, lost = storage.den == 0, storage.num == 0
            regular = ~(dead | lost)
            sign, shifted = regular & (storage.num * storage.den < 0), regular & (storage.off != 0)
            if np.any(shifted):
                raise view.refuse(
                    "shift-through-nonlinear",
                    f"{view.node.op} does not pass a shift ({np.count_nonzero(shifted)} channels)",
                    channels=channels_where(shifted),
                )
            if np.any(sign):
                raise view.refuse(
                    "negative-scale",
                    f"{view.node.op} passes only positive scales; {np.count_nonzero(sign)} channels are negative",
                    "train or re-parameterise these channels with a positive gamma",
                    channels_where(sign),
                )
            if np.any(lost & (storage.off * storage.den < 0)):
                raise view.refuse("zero-scale", f"{view.node.op} would cut off a constant channel")
            off = storage.off
            if np.any(dead & (off != 0)):
                with np.errstate(divide="ignore", invalid="ignore"):
                    value = np.where(dead, -off / storage.num, 0.0)
                off = np.where(dead, -function(view, value) * storage.num, off)
            return Storage(storage.den, storage.num, off)

        return same_on_both(view, check)

    return rule


def _leaky(view: View, value: Array) -> Array:
    return np.where(value < 0, value * view.node.get_float("alpha", float(np.float32(0.01))), value)


def _prelu(view: View, value: Array) -> Array:
    slope = view.node.constant(1)
    if slope is None:
        raise view.refuse("zero-scale", "PRelu has slopes computed at run time")
    slopes = compress(slope.float64())
    if view.node.version < 7 and slopes.ndim == 1:  # one slope for each channel
        slopes = slopes.reshape(-1, *(1,) * (value.ndim - 2))
    if np.broadcast_shapes(slopes.shape, value.shape) != value.shape:
        raise view.refuse("zero-scale", "PRelu has slopes that vary where the constant channel does not")
    return np.where(value < 0, value * slopes, value)


relu = homogeneous(lambda view, value: np.maximum(value, 0.0))
leaky_relu = homogeneous(_leaky)
prelu = homogeneous(_prelu)


def identity(view: View) -> list[Accept]:
    """y = x."""
    return same_on_both(view, lambda storage: storage)


def pool(counts_padding: Callable[[View], bool], any_sign: bool, shift: bool = True) -> Rule:
    """Pooling over axes 2 and up: a scale passes (positive only for a maximum), a shift where no padding is counted."""

    def rule(view: View) -> list[Accept]:
        def check(storage: Storage) -> Storage:
            pooled = {axis for axis in varies_on(storage) if axis >= 2}
            if pooled:
                raise view.refuse(
                    "not-uniform", f"{view.node.op} pools over axis {min(pooled)}, on which the demand varies"
                )
            constant = (storage.num == 0) | (storage.den == 0)
            if any(view.node.outputs[1:]) and np.any(constant):
                raise view.refuse("zero-scale", "a constant channel has no indices", channels=channels_where(constant))
            negative = storage.num * storage.den < 0
            if not any_sign and np.any(negative):
                raise view.refuse(
                    "negative-scale",
                    f"{view.node.op} passes only positive scales; {np.count_nonzero(negative)} channels are negative",
                    "train or re-parameterise these channels with a positive gamma",
                    channels_where(negative),
                )
            if np.any(storage.off != 0) and (not shift or counts_padding(view)):
                raise view.refuse(
                    "padded-shift", f"{view.node.op} counts padded zeros", channels=channels_where(storage.off != 0)
                )
            return storage

        return same_on_both(view, check)

    return rule


def average_counts_padding(view: View) -> bool:
    """Whether an AveragePool may average over padded zeros."""
    node = view.node
    padded = any(node.get_ints("pads") or []) or node.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if node.version < 7:
        return padded
    counted = bool(node.get_int("count_include_pad", 0))
    return counted and (padded or bool(node.get_int("ceil_mode", 0)))


max_pool = pool(lambda view: False, any_sign=False)
average_pool = pool(average_counts_padding, any_sign=True)
global_average_pool = pool(lambda view: False, any_sign=True)
global_max_pool = pool(lambda view: False, any_sign=False)


def indifferent(view: View) -> list[Accept]:
    """Shape, Size: the values do not matter."""
    return [Accept()]
