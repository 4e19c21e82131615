"""Operators that combine many elements into one: resizing, reductions, clipping and padding.

Source: ONNX operators Resize, Upsample, ReduceMean, ReduceSum, ReduceMax, ReduceMin, Clip, Pad, Neg, Cast.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.constants import Constant
from bnfold.plan import Edit, NewConstant
from bnfold.rules.base import OUT, Accept, Rule, View, channels_where, need_encode, varies_on
from bnfold.rules.elementwise import same_on_both
from bnfold.source import FLOATS


def _axes(view: View) -> list[int]:
    """The axes that a reduction works along."""
    node, rank = view.node, view.port(0).rank
    axes = node.get_ints("axes")
    if axes is None and node.input(1):
        constant = node.constant(1)
        if constant is None:
            raise view.refuse("opaque-op", f"the axes of {node.op} are computed at run time")
        axes = constant.ints()
    if not axes and node.get_int("noop_with_empty_axes", 0):
        return []
    return sorted({axis % rank for axis in axes}) if axes else list(range(rank))


def _uniform_on(view: View, storage: Storage, axes: list[int]) -> None:
    mixed = varies_on(storage) & set(axes)
    if mixed:
        raise view.refuse("not-uniform", f"{view.node.op} works along axis {min(mixed)}, on which the demand varies")


def reduce(any_sign: bool, shift_times: Callable[[View, list[int]], float]) -> Rule:
    """Reduce x to y: what is uniform on the reduced axes passes; ReduceSum takes the shift as often as it adds."""

    def rule(view: View) -> list[Accept]:
        x, y, axes = view.port(0), view.port(OUT), _axes(view)
        kept = bool(view.node.get_int("keepdims", 1))
        backwards = y.fixed and not x.fixed
        storage = y.storage if backwards else x.storage
        if backwards and not kept:
            storage = storage.map(lambda array: np.expand_dims(array, tuple(axes)))
        _uniform_on(view, storage, axes)
        if not any_sign and np.any(storage.num * storage.den < 0):
            negative = channels_where(storage.num * storage.den < 0)
            raise view.refuse("negative-scale", f"{view.node.op} passes only positive scales", channels=negative)
        times = shift_times(view, axes) if not storage.is_scale else 1.0
        if backwards:
            return [view.settle({0: Storage(storage.den, storage.num, storage.off / times)})]
        moved = Storage(storage.den, storage.num, storage.off * times)
        if not kept:
            moved = moved.map(lambda array: np.squeeze(array, tuple(axes)))
        return [view.settle({OUT: moved})]

    return rule


def _once(view: View, axes: list[int]) -> float:
    return 1.0


def _count(view: View, axes: list[int]) -> float:
    sizes = [view.port(0).shape[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) != len(sizes):
        raise view.refuse("unknown-shape", "ReduceSum adds a number of elements that is not known", "fix its shape")
    return float(math.prod(known))


reduce_mean = reduce(any_sign=True, shift_times=_once)
reduce_sum = reduce(any_sign=True, shift_times=_count)
reduce_extreme = reduce(any_sign=False, shift_times=_once)


def resize(view: View) -> list[Accept]:
    """y = x interpolated: what is uniform on the resized axes passes; the weights of a sample add up to one."""
    node = view.node
    if node.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise view.refuse("opaque-op", f"{node.op} extrapolates with a constant of its own")
    x, y = view.port(0), view.port(OUT)
    scales = _scales(view)
    resized = [
        axis
        for axis in range(x.rank)
        if x.shape[axis] != y.shape[axis] or not isinstance(x.shape[axis], int) or scales.get(axis, 1.0) != 1.0
    ]

    def check(storage: Storage) -> Storage:
        _uniform_on(view, storage, resized)
        return storage

    return same_on_both(view, check)


def _scales(view: View) -> dict[int, float]:
    """The constant scales by axis: one that is not 1 shifts the samples even where the size stays the same."""
    node, rank = view.node, view.port(0).rank
    found = node.attributes["scales"].floats if "scales" in node.attributes else ()
    slot = 1 if node.op == "Upsample" or node.version < 11 else 2
    constant = node.constant(slot)
    values = [float(value) for value in (found if constant is None else constant.float64().ravel())]
    axes = node.get_ints("axes") or range(rank)
    return dict(zip([axis % rank for axis in axes], values, strict=False))


def negate(view: View) -> list[Accept]:
    """y = -x: a passes, b changes its sign."""
    x, y = view.port(0), view.port(OUT)
    key, storage = (OUT, x.storage) if x.fixed or not y.fixed else (0, y.storage)
    return [view.settle({key: Storage(storage.den, storage.num, -storage.off)})]


def cast(view: View) -> list[Accept]:
    """y = x in another float type: passes."""
    graph, node = view.node.graph, view.node
    if graph.type(node.inputs[0]) not in FLOATS or graph.type(node.outputs[0]) not in FLOATS:
        raise view.refuse("opaque-op", "Cast to or from another than a float type")
    return same_on_both(view, lambda storage: storage)


def clip(view: View) -> list[Accept]:
    """y = min(max(x, low), high): one scale a > 0 for all channels, any shift: the bounds become a m + b."""
    node = view.node
    x, y = view.port(0), view.port(OUT)
    storage = y.storage if y.fixed and not x.fixed else x.storage
    _uniform_on(view, storage, list(range(x.rank)))
    a, b = (float(part.reshape(())) for part in need_encode(view, storage))
    if a <= 0:
        raise view.refuse("negative-scale", "Clip passes only positive scales")
    edits: tuple[Edit, ...] = ()
    for slot, hint in ((1, "min"), (2, "max")):
        bound = node.constant(slot)
        if node.version < 11:
            raise view.refuse("unsupported-form", "the bounds of Clip are attributes before opset 11")
        if node.input(slot) and bound is None:
            raise view.refuse("opaque-op", "the bounds of Clip are computed at run time")
        if bound is not None and (a, b) != (1.0, 0.0):
            edits += (_bound(bound, slot, hint, a, b),)
    accept = view.settle({OUT: storage, 0: storage})
    return [Accept(accept.assign, edits)]


def _bound(bound: Constant, slot: int, hint: str, a: float, b: float) -> NewConstant:
    scale: Array = np.full(bound.shape, a)
    return NewConstant(slot, hint, bound.type, bound.shape, bound, (scale,), lambda: np.full(bound.shape, b))


def pad(view: View) -> list[Accept]:
    """y = x with a border: a constant border of zero passes a scale; the modes that repeat x pass everything."""
    node = view.node
    mode = node.get_string("mode", "constant")
    pads = node.get_ints("pads") or node.get_ints("paddings")
    given = node.constant(1) if pads is None else None
    if given is not None:
        pads = given.ints()
    if pads is None:
        raise view.refuse("opaque-op", "the pads are computed at run time")
    rank = view.port(0).rank
    axes = list(range(rank))
    chosen = node.constant(3) if node.input(3) else None
    if node.input(3):
        if chosen is None:
            raise view.refuse("opaque-op", "the axes of Pad are computed at run time")
        axes = [axis % rank for axis in chosen.ints()]
    padded = [axis for i, axis in enumerate(axes) if pads[i] or pads[len(axes) + i]]
    border = _border(view) if mode == "constant" and max(pads, default=0) > 0 else None

    def check(storage: Storage) -> Storage:
        _uniform_on(view, storage, padded)
        if border is not None:
            if border != 0:
                raise view.refuse("padded-shift", f"Pad puts the constant {border} around the tensor")
            if not storage.is_scale:
                shifted = channels_where(storage.off != 0)
                raise view.refuse("padded-shift", "Pad puts zeros around the tensor", channels=shifted)
        return storage

    return same_on_both(view, check)


def _border(view: View) -> float:
    node = view.node
    if not node.input(2):
        return node.get_float("value", 0.0)
    constant = node.constant(2)
    if constant is None:
        raise view.refuse("opaque-op", "the constant of Pad is computed at run time")
    return float(constant.float64().reshape(()))
