"""Conv and ConvTranspose: absorb any scale on both sides, any shift behind, and a shift in front where no padding is.

Source: ONNX operators Conv-1/11/22, ConvTranspose-1/11/22.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.constants import Constant
from bnfold.plan import Edit, NewConstant
from bnfold.rules.base import OUT, Accept, View, channel_count, faults, need_decode, need_encode, only_axis
from bnfold.rules.unlocks import CONSTANT, CONSTANTS, NO_SHIFT, SIZED, VALID
from bnfold.sums import exact_sum
from bnfold.windows import axes_of

PIECE = 1 << 21
"""Weights that are added up at once."""


def conv(view: View) -> list[Accept]:
    """y = W * x + B.  W' = a W alpha;  B' = a (B + sum(W beta)) + b;  beta = 0 where a window touches zero padding."""
    node = view.node
    weight, shape = _weight(view)
    group, x, y = node.get_int("group", 1), view.port(0), view.port(OUT)
    out_channels, in_channels = shape[0], shape[1] * group
    alpha, beta = need_decode(view, only_axis(view, x, 1, in_channels))
    a, b = need_encode(view, only_axis(view, y, 1, out_channels))
    if (beta != 0).any() and _touches_padding(view, shape[2:]):
        raise view.refuse(
            "padded-shift",
            f"{node.op} pads its input with zeros, which the shift of {channel_count(beta != 0)} does not reach",
            f"do not pad, or {NO_SHIFT}",
            *faults(beta != 0, beta),
        )
    tail = (1,) * (len(shape) - 2)
    rows = _group_rows(alpha, group, out_channels)
    per_input = rows.reshape(*rows.shape, *tail)
    factors = _not_one(per_input, a.reshape(-1, 1, *tail))

    def moved() -> Array:
        rows, own = _group_rows(beta, group, out_channels), constant_weight(view, 1)
        step = max(1, PIECE // max(1, math.prod(shape[1:])))

        def part(start: int, stop: int) -> Array:
            kernels = np.asarray(own.rows(start, stop), np.float64).reshape(stop - start, shape[1], -1)
            met = rows if len(rows) == 1 else rows[start:stop]
            return exact_sum((kernels * met[:, :, None]).reshape(stop - start, -1))

        starts = range(0, out_channels, step)
        return np.concatenate([np.zeros(0), *(part(start, min(start + step, out_channels)) for start in starts)])

    return [_absorbed(view, weight, factors, a, b, moved if (beta != 0).any() else None)]


def conv_transpose(view: View) -> list[Accept]:
    """As Conv, with W[c, m]; a shift in front only for kernel 1, stride 1 and no output padding."""
    node = view.node
    weight, shape = _weight(view)
    group, x, y = node.get_int("group", 1), view.port(0), view.port(OUT)
    in_channels, per_group = shape[0], shape[1]
    alpha, beta = need_decode(view, only_axis(view, x, 1, in_channels))
    a, b = need_encode(view, only_axis(view, y, 1, per_group * group))
    if (beta != 0).any() and not _pointwise(view, shape[2:]):
        raise view.refuse(
            "padded-shift",
            f"the outputs of {node.op} see different numbers of inputs, so that a shift does not reach all alike",
            f"use kernel size 1 and stride 1, or {NO_SHIFT}",
            *faults(beta != 0, beta),
        )
    tail = (1,) * (len(shape) - 2)
    out_rows = _group_rows(a, group, in_channels)
    factors = _not_one(alpha.reshape(-1, 1, *tail), out_rows.reshape(*out_rows.shape, *tail))

    def moved() -> Array:
        total = constant_weight(view, 1).float64().reshape(in_channels, per_group) * beta[:, None]
        return exact_sum(total.reshape(group, -1, per_group).transpose(0, 2, 1)).reshape(-1)

    return [_absorbed(view, weight, factors, a, b, moved if (beta != 0).any() else None)]


def _weight(view: View) -> tuple[Constant | None, tuple[int, ...]]:
    """The weights and their shape; None for weights that the graph computes, which take a scale only."""
    computed = view.node.constant(1) is None and not view.port(1).pinned
    weight = None if computed else constant_weight(view, 1)
    shape = tuple(size for size in view.port(1).shape if isinstance(size, int))
    if len(shape) < view.port(1).rank:
        raise view.refuse("unknown-shape", f"the shape of the weights of {view.node.op} is not known", SIZED)
    group = view.node.get_int("group", 1)
    if len(shape) < 3 or len(shape) != view.port(0).rank or shape[0] % group:
        raise view.refuse("unsupported-form", f"the weights of {view.node.op} have shape {shape}", VALID)
    return weight, shape


def _absorbed(
    view: View,
    weight: Constant | None,
    factors: tuple[Array, ...],
    a: Array,
    b: Array,
    moved: Callable[[], Array] | None,
) -> Accept:
    """Scale the weights and move the bias; where the graph computes one of them, it must be stored with that."""
    node, wants = view.node, dict[int, Storage]()
    edits: tuple[Edit, ...] = ()
    if weight is not None:
        edits = _weight_edit(weight, factors)
    else:
        if moved is not None:
            raise view.refuse("dynamic-weight", f"the weights of {node.op} are computed at run time", CONSTANTS)
        whole: Array = np.ones((1,) * view.port(1).rank)
        for factor in factors:
            whole = whole * factor
        wants[1] = Storage.encode(whole, np.zeros_like(whole))
    if not node.input(2) or node.constant(2) is not None or view.port(2).pinned:
        type_ = node.graph.type(node.outputs[0]) if weight is None else weight.type
        return view.settle(wants, edits + bias_edit(view, 2, type_, a, b, moved))
    wants[2] = Storage.encode(a, b if moved is None else a * moved() + b)
    return view.settle(wants, edits)


def constant_weight(view: View, slot: int) -> Constant:
    """The node's constant float weight; refuses where there is none."""
    node = view.node
    constant = node.constant(slot)
    name = node.input(slot)
    if constant is None:
        owner = node.graph.owner(name)
        if owner is not None and name in owner.overridable:
            why, place = owner.override_of(name)
            raise view.refuse("overridable-weight", f"{name!r} {why}", f"remove {name!r} from the {place}")
        raise view.refuse("dynamic-weight", f"the weights of {node.op} are computed at run time", CONSTANTS)
    if not constant.is_float:
        text = f"the weights of {node.op} are not of a float type"
        raise view.refuse("unsupported-form", text, "fold before quantising")
    return constant


def bias_edit(
    view: View, slot: int, type_: int, a: Array, b: Array, moved: Callable[[], Array] | None
) -> tuple[Edit, ...]:
    """B' = a (B + moved) + b, in the node's bias slot; none where that is what is there already."""
    name = view.node.input(slot)
    old = view.node.constant(slot) if name else None
    if name and old is None:
        if (a == 1).all() and (b == 0).all() and moved is None:
            return ()
        raise view.refuse("dynamic-weight", f"the bias of {view.node.op} is computed at run time", CONSTANT)
    if moved is None and (b == 0).all() and (old is None or (a == 1).all()):
        return ()
    if old is not None and not (old.is_float and old.shape == a.shape):
        text = f"the bias of {view.node.op} is no vector of {a.size} floats"
        raise view.refuse("unsupported-form", text, VALID)
    shift = (lambda: b) if moved is None else (lambda: a * moved() + b)
    return (NewConstant(slot, "bias", old.type if old else type_, a.shape, old, (a,) if old else (), shift),)


def _weight_edit(weight: Constant, factors: tuple[Array, ...]) -> tuple[Edit, ...]:
    return (NewConstant(1, "weight", weight.type, weight.shape, weight, factors),) if factors else ()


def _not_one(*factors: Array) -> tuple[Array, ...]:
    return tuple(factor for factor in factors if (factor != 1).any())


def _group_rows(vector: Array, group: int, rows: int) -> Array:
    """Row r of the result is the part of the vector that belongs to r's group; (1, n) for one group."""
    parts = vector.reshape(group, -1)
    return parts if group == 1 else np.repeat(parts, rows // group, axis=0)


def _touches_padding(view: View, kernel: tuple[int, ...]) -> bool:
    """Whether some window of a Conv reaches a padded zero."""
    sizes = view.port(0).shape[2:]
    axes = axes_of(view.node, kernel, sizes)
    return any(axis is None or axis.touches_padding(size) for axis, size in zip(axes, sizes, strict=True))


def _pointwise(view: View, kernel: tuple[int, ...]) -> bool:
    """Whether every output of a ConvTranspose is made of exactly one input position."""
    node = view.node
    ones = all(size == 1 for size in kernel) and all(stride == 1 for stride in node.get_ints("strides") or [1])
    extends = any(node.get_ints("output_padding") or []) or node.get_ints("output_shape") is not None
    cropped = any(pad < 0 for pad in node.get_ints("pads") or [])
    return ones and not extends and not cropped and node.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
