"""Operators that put a constant beside what they copy: Pad, and Resize where it extrapolates.

Source: ONNX operators Pad -1/2/11/13/18 and newer, Resize -10/11/13/18/19, Upsample -1/7/9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from bnfold.affine import AGREE, Array, Storage
from bnfold.plan import Edit, NewConstant
from bnfold.rules.base import OUT, Accept, View, affordable, channels_where, compress, varies_on
from bnfold.rules.elementwise import same_on_both
from bnfold.rules.float_attributes import set_float
from bnfold.rules.reduction import uniform_on
from bnfold.rules.unlocks import CONSTANT, SIZED, UNIFORM
from bnfold.windows import pads_of


def one_border(view: View, storage: Storage, border: float) -> float:
    """The one number c' that stands for the constant c = `border` wherever c is put beside the tensor.

    ``den c' = num c + off`` on every channel; refuses where channels would need different ones.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = (storage.num * border + storage.off) / storage.den
    known = np.broadcast_to(storage.den != 0, wanted.shape)
    new = float(wanted[known][0]) if np.any(known) else border
    terms = (storage.den * new, storage.num * border, storage.off)
    size = sum((np.abs(term) for term in terms[1:]), np.abs(terms[0]))
    different = np.abs(terms[0] - terms[1] - terms[2]) > AGREE * size
    if np.any(different):
        raise view.refuse(
            "padded-shift",
            f"{view.node.op} puts {border:g} beside every channel, for which they would need different numbers",
            "pad with edge, reflect or wrap, or let all channels agree",
            channels_where(different),
        )
    return new


def pad(view: View) -> list[Accept]:
    """y = x with a border of a constant c: a c + b must be one number; edge, reflect and wrap pass everything.

    Channels that are nothing but border are stored so that they agree.
    """
    pads = _pads(view)
    grown = {axis for axis, both in pads.items() if max(both) > 0}
    if view.node.get_string("mode", "constant") != "constant":

        def check(storage: Storage) -> Storage:
            uniform_on(view, storage, [axis for axis, both in pads.items() if any(both)])
            return storage

        return same_on_both(view, check)
    border = _border(view) if grown else 0.0
    x, y = view.port(0), view.port(OUT)
    if y.fixed:
        inner = _inside(view, y.storage, pads)
        new = border if not grown else one_border(view, _beside(view, y.storage, pads, grown), border)
        return [view.settle({0: inner}, _new_border(view, border, new))]
    varying = varies_on(x.storage) & set(pads)
    new = one_border(view, x.storage, border) if grown - varying else border
    return [view.settle({OUT: _outside(view, x.storage, pads, new - border)}, _new_border(view, border, new))]


def _pads(view: View) -> dict[int, tuple[int, int]]:
    """Begin and end of every axis that is padded or cropped."""
    pads = pads_of(view.node, view.port(0).rank)
    if pads is None:
        raise view.refuse("opaque-op", "how much it pads is computed at run time, or is too much", CONSTANT)
    return pads


def _border(view: View) -> float:
    node = view.node
    if node.version < 11 or not node.input(2):
        return node.get_float("value", 0.0)
    constant = node.constant(2)
    if constant is None:
        raise view.refuse("opaque-op", "the constant of Pad is computed at run time", CONSTANT)
    border = float(constant.float64().reshape(()))
    if not np.isfinite(border):
        raise view.refuse("out-of-range", f"Pad puts {border} around the tensor", "pad with a finite number")
    return border


def _new_border(view: View, border: float, new: float) -> tuple[Edit, ...]:
    node = view.node
    if new == border:
        return ()
    if node.version < 11:
        return (set_float(view, "value", new),)
    constant = node.constant(2)
    type_ = view.node.graph.type(node.inputs[0]) if constant is None else constant.type
    shape = () if constant is None else constant.shape
    nothing: Array = np.zeros(())
    return (NewConstant(2, "border", type_, shape, constant, (nothing,), lambda: np.full(shape, new)),)


def _ends(view: View, storage: Storage, pads: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """The pads of the axes on which the demand varies; those must not crop."""
    found = {axis: both for axis, both in pads.items() if axis in varies_on(storage)}
    for axis, both in found.items():
        if min(both) < 0:
            raise view.refuse("not-uniform", f"Pad crops axis {axis}, on which the demand varies", UNIFORM)
    return found


def _outside(view: View, storage: Storage, pads: dict[int, tuple[int, int]], shift: float) -> Storage:
    """The storage of y: what is new on an axis on which the demand varies is stored as v + shift."""
    ends = _ends(view, storage, pads)
    width = [ends.get(axis, (0, 0)) for axis in range(view.port(OUT).rank)]

    def grow(array: Array, value: float) -> Array:
        sizes = [view.port(0).shape[axis] if axis in ends else size for axis, size in enumerate(array.shape)]
        if not all(isinstance(size, int) for size in sizes):
            raise view.refuse("unknown-shape", f"Pad grows an axis of unknown size: {sizes}", SIZED)
        inner = [int(size or 1) for size in sizes]
        affordable(view, [size + sum(ends) for size, ends in zip(inner, width, strict=True)])
        return np.pad(np.broadcast_to(array, inner), width, constant_values=value)

    return Storage(grow(storage.den, 1.0), grow(storage.num, 1.0), grow(storage.off, shift))


def _inside(view: View, storage: Storage, pads: dict[int, tuple[int, int]]) -> Storage:
    """The storage of x: that of y without what is new."""
    ends = _ends(view, storage, pads)

    def cut(array: Array) -> Array:
        index = [
            slice(ends[axis][0], size - ends[axis][1]) if axis in ends and size > 1 else slice(None)
            for axis, size in enumerate(array.shape)
        ]
        return compress(array[tuple(index)])

    return storage.map(cut)


def _beside(view: View, storage: Storage, pads: dict[int, tuple[int, int]], grown: set[int]) -> Storage:
    """The storage of y where it holds the border."""
    ends = _ends(view, storage, pads)
    if grown - set(ends):
        return storage
    shape = np.broadcast_shapes(storage.den.shape, storage.num.shape, storage.off.shape)
    inner = tuple(
        slice(ends[axis][0], size - ends[axis][1]) if axis in ends else slice(None) for axis, size in enumerate(shape)
    )
    new = np.ones(shape, np.bool_)
    new[inner] = False
    return storage.map(lambda array: np.broadcast_to(array, shape)[new])


def resize(view: View) -> list[Accept]:
    """y = x interpolated: what is uniform on the resized axes passes; the weights of a sample add up to one.

    With tf_crop_and_resize samples outside are a constant e: a e + b must be one number.
    """
    node = view.node
    x, y = view.port(0), view.port(OUT)
    crops = node.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    scales, regions = _by_axis(view, _scales(view)), _by_axis(view, _regions(view)) if crops else {}
    resized = [
        axis
        for axis in range(x.rank)
        if x.shape[axis] != y.shape[axis]
        or not isinstance(x.shape[axis], int)
        or scales.get(axis, 1.0) != 1.0
        or regions.get(axis, (0.0, 1.0)) != (0.0, 1.0)
    ]
    edits: list[Edit] = []

    def check(storage: Storage) -> Storage:
        uniform_on(view, storage, resized)
        if crops:
            border = node.get_float("extrapolation_value", 0.0)
            new = one_border(view, storage, border)
            edits.extend([set_float(view, "extrapolation_value", new)] if new != border else [])
        return storage

    return [Accept(accept.assign, tuple(edits)) for accept in same_on_both(view, check)]


T = TypeVar("T")


def _by_axis(view: View, values: Sequence[T]) -> dict[int, T]:
    axes = view.node.get_ints("axes") or range(view.port(0).rank)
    return dict(zip([axis % view.port(0).rank for axis in axes], values, strict=False))


def _scales(view: View) -> list[float]:
    """The constant scales: one that is not 1 shifts the samples even where the size stays the same."""
    node = view.node
    found = node.attributes["scales"].floats if "scales" in node.attributes else ()
    constant = node.constant(1 if node.op == "Upsample" or node.version < 11 else 2)
    return [float(value) for value in (found if constant is None else constant.float64().ravel())]


def _regions(view: View) -> list[tuple[float, float]]:
    """Begin and end of what tf_crop_and_resize reads, as parts of the size."""
    constant = view.node.constant(1)
    if constant is None:
        raise view.refuse("opaque-op", f"{view.node.op} crops a region that is computed at run time", CONSTANT)
    values = [float(value) for value in constant.float64().ravel()]
    return list(zip(values[: len(values) // 2], values[len(values) // 2 :], strict=True))
