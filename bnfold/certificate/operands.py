"""What constant operands of elementwise operators should be, and the constants that stand beside a tensor.

As in `bnfold.certificate.formulas`: derived once more from how the tensors around the node are stored. Where the output
is a constant whatever the output holds, an operand stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Array, Storage
from bnfold.certificate.affines import aligned, storage_of
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import EPS, Exact
from bnfold.certificate.wiring import GraphPair, Pair
from bnfold.constants import Constant
from bnfold.graph import Node

Mask = NDArray[np.bool_]

ATTRIBUTES: dict[str, dict[str, int]] = {
    "Clip": {"min": 1, "max": 2},
    "Pad": {"value": 2},
    "LeakyRelu": {"alpha": 1},
    "Resize": {"extrapolation_value": 4},
}
"""Float attributes that a fold may change, as if they were constant inputs of these slots."""


def _constant(node: Node, slot: int) -> Constant:
    found = node.constant(slot)
    if found is None:
        raise NotCertifiedError(f"its input {slot} is no constant")
    return found


def _constants(node: Node) -> list[int]:
    return [slot for slot in range(len(node.inputs)) if node.constant(slot) is not None]


def _encode(storage: Storage) -> tuple[Array, Array, Mask]:
    """(a, b) of a tensor, 1 and 0 where it is dead; and where that is."""
    dead = storage.den == 0
    return np.where(dead, 1.0, storage.a), np.where(dead, 0.0, storage.b), dead


def _point(storage: Storage) -> tuple[Array, Array]:
    """Some (v, v') that a storage allows: v' = 0, or, where v is lost, v = 0."""
    lost = storage.num == 0
    return np.where(lost, 0.0, storage.beta), np.where(lost, storage.off / storage.den, 0.0)


def _operand(value: Array, magnitude: Array) -> Exact:
    shape = np.broadcast_shapes(value.shape, magnitude.shape)
    return Exact.of(np.broadcast_to(value, shape), np.broadcast_to(64 * EPS * magnitude, shape))


def _sum(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """y = sum of w_i x_i: constants become a c; the first one makes up the rest, (a y(v) + b - y(v')) / w."""
    node = pair.old
    constants = _constants(node)
    out = storage_of(graph, node, node.outputs[0])
    rank, (a, b, dead) = out.num.ndim, _encode(out)
    count = len(node.inputs)
    weights = {slot: -1.0 if node.op == "Sub" and slot == 1 else 1.0 for slot in range(count)}
    if node.op == "Mean":
        weights = dict.fromkeys(range(count), 1.0 / count)
    found: dict[int, Exact] = {}
    for slot in constants[1:]:
        scaled = a * aligned(node, _constant(node, slot), rank)
        found[slot] = _operand(scaled, np.abs(scaled))
    first = constants[0]
    terms = [b]
    for slot, name in enumerate(node.inputs):
        if slot not in constants:
            value, held = _point(storage_of(graph, node, name))
            terms += [np.where(dead, 0.0, term) for term in (a * weights[slot] * value, -weights[slot] * held)]
    own = a * aligned(node, _constant(node, first), rank)
    total = own + sum(terms[1:], terms[0]) / weights[first]
    size = np.abs(own) + sum((np.abs(term) for term in terms[1:]), np.abs(terms[0])) / abs(weights[first])
    found[first] = _operand(total, size)
    return found


def _factor(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """y = c x: c' = a c alpha;  y = x / c: c' = c / (a alpha);  y = c / x: c' = a c / alpha."""
    node = pair.old
    (slot,) = _constants(node)
    x, y = storage_of(graph, node, node.inputs[1 - slot]), storage_of(graph, node, node.outputs[0])
    a, _, dead = _encode(y)
    alpha = np.where(dead, 1.0, x.alpha)
    c = aligned(node, _constant(node, slot), y.num.ndim)
    value = c * a / alpha if slot == 0 else c / (a * alpha)
    value = c * a * alpha if node.op == "Mul" else value
    return {slot: _operand(value, np.abs(value))}


def _alike(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """Concat, Max, Min, Where: a constant is stored as the output is where it ends up."""
    node = pair.old
    out = storage_of(graph, node, node.outputs[0])
    rank, found = out.num.ndim, {}
    whole_a, whole_b, _ = _encode(out)
    a, b = whole_a, whole_b
    at = 0
    for slot, name in enumerate(node.inputs):
        constant = node.constant(slot)
        axis = node.get_int("axis", 1) % rank if node.op == "Concat" else None
        if axis is not None and (whole_a.shape[axis], whole_b.shape[axis]) != (1, 1):
            shape = node.graph.shape(name)
            size = None if shape is None else shape[axis]
            if not isinstance(size, int):
                raise NotCertifiedError("the size of its inputs is not known")
            a, b = (
                array if array.shape[axis] == 1 else array.take(range(at, at + size), axis)
                for array in (whole_a, whole_b)
            )
            at += size
        if constant is None or (node.op == "Where" and slot == 0):
            continue
        c = aligned(node, constant, rank)
        found[slot] = _operand(a * c + b, np.abs(a * c) + np.abs(b))
    return found


def _moved(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """A constant that is moved, along axes on which the output is stored alike: c' = a c + b."""
    node = pair.old
    constant, y = _constant(node, 0), storage_of(graph, node, node.outputs[0])
    rank, out = len(constant.shape), y.num.ndim
    axis = node.get_int("axis", 0) % rank if node.op == "Gather" and rank else 0
    gone = range(axis, axis + out - rank + 1) if node.op == "Gather" else range(out - rank)

    def on_constant(array: Array) -> Array:
        if any(array.shape[each] != 1 for each in gone):
            raise NotCertifiedError("its output is stored in a way that varies where its constant is moved along")
        kept = [size for each, size in enumerate(array.shape) if each not in gone]
        return array.reshape(*kept[:axis], 1, *kept[axis:]) if node.op == "Gather" else array.reshape(kept)

    return {0: Exact.affine(constant, on_constant(y.a), on_constant(y.b))}


def _clip(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """The bounds m of min(max(x, low), high) become a m + b, and a < 0 makes the lower one of the upper one."""
    node = pair.old
    out = storage_of(graph, node, node.outputs[0])
    if out.num.size != 1 or out.off.size != 1 or out.den.size != 1:
        raise NotCertifiedError("a bound is the same for every channel")
    a, b = float(out.a.reshape(())), float(out.b.reshape(()))
    found = {}
    for slot, name in ((1, "min"), (2, "max")):
        constant = node.constant(slot)
        if node.version < 11 and name in node.attributes:
            m = np.asarray(node.get_float(name, 0.0))
        elif node.version >= 11 and constant is not None:
            m = constant.float64()
        else:
            continue
        found[slot if a > 0 else 3 - slot] = _operand(a * m + b, np.abs(a * m) + abs(b))
    return found


def _slope(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """x, or k x below zero: where the sign of x changes, k' = 1/k."""
    node = pair.old
    x = storage_of(graph, node, node.inputs[0])
    if node.op == "LeakyRelu":
        k = np.full((1,) * x.num.ndim, node.get_float("alpha", float(np.float32(0.01))))
    else:
        k = _constant(node, 1).float64()
        k = k.reshape(*k.shape, *(1,) * (x.num.ndim - 2)) if node.version < 7 and k.ndim == 1 else k
        k = k.reshape(*(1,) * (x.num.ndim - k.ndim), *k.shape)
    value = np.where(x.num * x.den < 0, 1.0 / k, k)
    if node.op == "LeakyRelu" and np.all(value == value.flat[0]):
        value = value.flat[0].reshape(())
    elif node.version < 7:
        value = value.reshape(value.shape[1]) if value.ndim > 1 else value
    return {1: _operand(value, np.abs(value))}


def _border(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """The constant c beside a tensor: den c' = num c + off, at any element of the output that is nothing but c."""
    node = pair.old
    y = storage_of(graph, node, node.outputs[0])
    if node.op == "Resize":
        slot, c = 4, node.get_float("extrapolation_value", 0.0)
        beside: Mask = np.ones((1,) * y.num.ndim, np.bool_)
    else:
        constant = node.constant(2) if node.version >= 11 else None
        c = node.get_float("value", 0.0) if constant is None else float(constant.float64().reshape(()))
        slot, beside = 2, _padded(node, y)
    terms = np.broadcast_arrays(y.num * c, y.off, y.den, beside)
    at = np.flatnonzero((terms[2] != 0) & terms[3])
    if not at.size:
        raise NotCertifiedError("nothing says what its constant should be")
    scaled, off, den = (float(term.flat[at[0]]) for term in terms[:3])
    shape = () if slot == 4 or node.version < 11 else _stored_shape(pair)
    size = (abs(scaled) + abs(off)) / abs(den)
    # Other channels say the same up to rounding.
    return {slot: Exact.of(np.full(shape, (scaled + off) / den), np.full(shape, 64 * EPS * size))}


def _stored_shape(pair: Pair) -> tuple[int, ...]:
    new = pair.new.constant(2)
    return () if new is None or new.shape not in ((), (1,)) else new.shape


def _padded(node: Node, y: Storage) -> Mask:
    """Which elements of an output's storage are border, at least somewhere."""
    rank = y.num.ndim
    constant = node.constant(1)
    pads = node.get_ints("pads") or node.get_ints("paddings") or ([] if constant is None else constant.ints())
    axes = node.constant(3)
    chosen = list(range(rank)) if axes is None else [axis % rank for axis in axes.ints()]
    shape = np.broadcast_shapes(y.den.shape, y.num.shape, y.off.shape)
    border = np.zeros(shape, np.bool_)
    for place, axis in enumerate(chosen):
        begin, end = pads[place], pads[len(chosen) + place]
        if shape[axis] == 1:
            border |= max(begin, end) > 0
            continue
        along = np.arange(shape[axis])
        new = (along < begin) | (along >= shape[axis] - max(end, 0))
        border |= new.reshape([-1 if i == axis else 1 for i in range(rank)])
    return border


OPERANDS: dict[str, Callable[[GraphPair, Pair], Mapping[int, Exact]]] = {
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean"), _sum),
    **dict.fromkeys(("Mul", "Div"), _factor),
    **dict.fromkeys(("Concat", "Max", "Min", "Where"), _alike),
    **dict.fromkeys(("PRelu", "LeakyRelu"), _slope),
    **dict.fromkeys(("Pad", "Resize"), _border),
    **dict.fromkeys(("Expand", "Gather", "Slice", "Tile", "Compress"), _moved),
    "Clip": _clip,
}
"""By operator: the exact values of its constant inputs, by slot."""
