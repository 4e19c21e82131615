"""Reductions along axes.

Source: ONNX operators ReduceSum, ReduceMean, ReduceMax, ReduceMin, ReduceL1, ReduceL2, ReduceSumSquare,
ReduceLogSumExp, ArgMax, ArgMin, CumSum, all versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from bnfold.affine import Storage
from bnfold.plan import Edit
from bnfold.rules.base import OUT, Accept, Rule, View, channels_where, refuse_signs, varies_on
from bnfold.rules.elementwise import refuse_shift, same_on_both
from bnfold.rules.extremes import swapped
from bnfold.rules.unlocks import CONSTANT, LAYER_BETWEEN, NOT_ZERO, SIZED, UNIFORM


def _axes(view: View) -> list[int]:
    """The axes that a reduction works along."""
    node, rank = view.node, view.port(0).rank
    axes = node.get_ints("axes")
    if axes is None and node.input(1):
        constant = node.constant(1)
        if constant is None:
            raise view.refuse("opaque-op", f"the axes of {node.op} are computed at run time", CONSTANT)
        axes = constant.ints()
    if not axes and node.get_int("noop_with_empty_axes", 0) == 1:
        return []
    return sorted({axis % rank for axis in axes}) if axes else list(range(rank))


def uniform_on(view: View, storage: Storage, axes: Sequence[int]) -> None:
    """Refuse a demand that varies on one of these axes."""
    mixed = varies_on(storage) & set(axes)
    if mixed:
        text = f"{view.node.op} works along axis {min(mixed)}, on which the demand varies"
        raise view.refuse("not-uniform", text, UNIFORM)


Move = Callable[[View, Storage, list[int], bool], tuple[Storage, tuple[Edit, ...]]]
"""(view, storage that is uniform along the axes, axes, whether it is the output's) to the other end's, and edits."""


def reduce(move: Move, normalise: Callable[[Storage], Storage] = lambda storage: storage) -> Rule:
    """Reduce x to y along axes on which the demand does not vary.

    Args:
        move: what the demand becomes on the other side.
        normalise: applied to what x is stored as before it must be uniform: signs that do not matter.
    """

    def rule(view: View) -> list[Accept]:
        x, y, axes = view.port(0), view.port(OUT), _axes(view)
        kept = view.node.get_int("keepdims", 1) == 1  # any other number drops them, as in ONNX Runtime
        backwards = y.fixed and not x.fixed
        storage = y.storage if backwards else normalise(x.storage)
        if backwards and not kept:
            storage = storage.map(lambda array: np.expand_dims(array, tuple(axes)))
        uniform_on(view, storage, axes)
        moved, edits = move(view, storage, axes, backwards)
        if not kept and not backwards:
            moved = moved.map(lambda array: np.squeeze(array, tuple(axes)))
        return [view.settle({0 if backwards else OUT: moved}, edits)]

    return rule


def _averaged(view: View, storage: Storage, axes: list[int], backwards: bool) -> tuple[Storage, tuple[Edit, ...]]:
    return storage, ()


def _added(view: View, storage: Storage, axes: list[int], backwards: bool) -> tuple[Storage, tuple[Edit, ...]]:
    if storage.is_scale:
        return storage, ()
    sizes = [view.port(0).shape[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) != len(sizes):
        raise view.refuse("unknown-shape", "ReduceSum adds a number of elements that is not known", SIZED)
    count = float(math.prod(known))
    return Storage(storage.den, storage.num, storage.off / count if backwards else storage.off * count), ()


def _chosen(view: View, storage: Storage, axes: list[int], backwards: bool) -> tuple[Storage, tuple[Edit, ...]]:
    return storage, swapped(view, storage)


def _sized(view: View, storage: Storage, axes: list[int], backwards: bool) -> tuple[Storage, tuple[Edit, ...]]:
    _refuse_noop(view, axes)
    refuse_shift(view, storage, storage.off != 0)
    dead = storage.den == 0
    if np.any(dead):
        text = f"a dead channel cannot go backwards through {view.node.op}"
        raise view.refuse("zero-scale", text, NOT_ZERO, channels_where(dead))
    refuse_signs(view, storage)
    return storage, ()


def _refuse_noop(view: View, axes: list[int]) -> None:
    if not axes:
        raise view.refuse(
            "unsupported-form", f"{view.node.op} without axes does not reduce, and runtimes differ", "name the axes"
        )


def _squared(view: View, storage: Storage, axes: list[int], backwards: bool) -> tuple[Storage, tuple[Edit, ...]]:
    _sized(view, storage, axes, backwards)
    power = 0.5 if backwards else 2.0
    return Storage(storage.den**power, storage.num**power, storage.off), ()


def _shifted(view: View, storage: Storage, axes: list[int], backwards: bool) -> tuple[Storage, tuple[Edit, ...]]:
    _refuse_noop(view, axes)
    if np.any(storage.num != storage.den):
        raise view.refuse("opaque-op", f"{view.node.op} passes a shift, and no scale", LAYER_BETWEEN)
    return storage, ()


def _unsigned(storage: Storage) -> Storage:
    """The size of every scale, where there is no shift."""
    return Storage(np.abs(storage.den), np.abs(storage.num), storage.off) if storage.is_scale else storage


reduce_mean = reduce(_averaged)
"""a and b pass."""

reduce_sum = reduce(_added)
"""a passes, b as often as elements are added."""

reduce_extreme = reduce(_chosen)
"""a > 0 and any b pass; a < 0 everywhere swaps ReduceMax and ReduceMin."""

reduce_norm = reduce(_sized, _unsigned)
"""ReduceL1, ReduceL2: abs(a) passes, b = 0."""

reduce_squares = reduce(_squared, _unsigned)
"""a passes as a^2, b = 0."""

reduce_log_sum_exp = reduce(_shifted)
"""b passes, a = 1."""


def arg_extreme(view: View) -> list[Accept]:
    """Where the largest element is: indifferent to a > 0 and b along its axis; a < 0 swaps ArgMax and ArgMin."""
    x = view.port(0)
    uniform_on(view, x.storage, [view.node.get_int("axis", 0) % x.rank])
    if np.any(x.storage.num == 0) or np.any(x.storage.den == 0):
        raise view.refuse("zero-scale", "a constant channel has no indices", NOT_ZERO)
    return [Accept({}, swapped(view, x.storage))]


def cumulative_sum(view: View) -> list[Accept]:
    """y = running sums of x along an axis: what does not vary on it passes, b = 0."""
    constant = view.node.constant(1)
    if constant is None:
        raise view.refuse("opaque-op", "the axis of CumSum is computed at run time", CONSTANT)
    axis = constant.ints()[0] % view.port(0).rank

    def check(storage: Storage) -> Storage:
        uniform_on(view, storage, [axis])
        refuse_shift(view, storage, storage.off != 0)
        return storage

    return same_on_both(view, check)
