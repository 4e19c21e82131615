"""Operators that pick, repeat or rearrange elements: one rule for all, given where each output element comes from.

The demand's arrays are moved as the elements are. Backwards, every input element takes the demand of the outputs that
read it: these must agree, and an element that nothing reads is free.

Source: ONNX operators Split, Slice, Tile, Expand, DepthToSpace, SpaceToDepth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Array, Storage
from bnfold.constants import as_slice
from bnfold.graph import Dim
from bnfold.rules.base import OUT, Accept, Refused, Rule, View, affordable, compress, lift, varies_on
from bnfold.rules.operands import first_accepted
from bnfold.rules.unlocks import CONSTANT, SIZED, UNIFORM, VALID

Positions = NDArray[np.int64]
Along = frozenset[int]
"""Axes along which an operator is looked at: on the others every demand is the same for all elements."""

Picks = Callable[[View, Positions, int, Along], Positions]
"""(view, input positions, output number, axes) to the positions that the output's elements are read from."""


def picks(axes: Callable[[View], Mapping[int, int | None]], pick: Picks) -> Rule:
    """A rule for an operator that keeps the rank and rearranges along some axes only.

    Where no demand varies along them, it passes whatever is picked, also what is known at run time only.

    Args:
        axes: the axes along which it works; each with the size to work on where the operator repeats the same pattern
            all along the axis, else None for the tensor's own size.
        pick: what it does to an array of positions.
    """

    def rule(view: View) -> list[Accept]:
        x = view.port(0)
        sizes = {axis % x.rank: size for axis, size in axes(view).items()}
        outputs = [-1 - i for i, name in enumerate(view.node.outputs) if name]
        fixed = [key for key in outputs if view.port(key).fixed]
        given = [view.port(key).storage for key in fixed]

        def way(along: Along) -> Accept:
            index = _positions(view, sizes, along, [x.storage, *given])
            wanted = x.storage
            if not x.fixed:
                for key in fixed:
                    wanted = _backward(view, wanted, view.port(key).storage, pick(view, index, -key - 1, along), index)
                if _has_pattern(wanted, sizes):
                    raise _pattern(view)
            wants = {0: wanted}
            for key in outputs:
                wants[key] = _forward(view, wanted, pick(view, index, -key - 1, along), index, sizes)
            return view.settle(wants)

        def uniform() -> Accept:
            return view.settle(dict.fromkeys([0, *outputs], given[0]))

        if x.fixed or not fixed:
            return [way(_touched(sizes, [x.storage, *given]))]
        touched = _touched(sizes, given)
        ways: list[Callable[[], Accept]] = [partial(way, touched)] if touched else [uniform]
        if touched != frozenset(sizes):  # only where this node reads something
            ways.append(partial(way, frozenset(sizes)))
        return _distinct(first_accepted(ways, view, "conflict", ""))

    return rule


def _touched(sizes: Mapping[int, int | None], given: Sequence[Storage]) -> Along:
    """The axes along which a demand varies; all of them, where an operator exchanges what lies along several."""
    found = frozenset(sizes) & frozenset().union(*map(varies_on, given))
    return frozenset(sizes) if found and any(size is not None for size in sizes.values()) else found


def _distinct(accepts: list[Accept]) -> list[Accept]:
    """Without a second way that is the first."""
    first, *others = accepts
    same = (
        other.assign.keys() == first.assign.keys()
        and all(storage.agrees(first.assign[key]) for key, storage in other.assign.items())
        for other in others
    )
    return [first, *(other for other, equal in zip(others, same, strict=True) if not equal)]


def _positions(view: View, sizes: Mapping[int, int | None], along: Along, given: Sequence[Storage]) -> Positions:
    """Positions 0, 1, ... for the axes that matter: those that are looked along, and those a demand varies on."""
    shape: list[int] = []
    for axis in range(view.port(0).rank):
        size: Dim = max(part.shape[axis] for storage in given for part in (storage.den, storage.num, storage.off))
        if axis in sizes:
            size = (sizes[axis] or view.port(0).shape[axis]) if axis in along else 1
        if not isinstance(size, int):
            raise view.refuse("unknown-shape", f"axis {axis} of {view.node.op} has no known size", SIZED)
        shape.append(size)
    affordable(view, shape)
    return np.arange(math.prod(shape)).reshape(shape)


def _forward(
    view: View, storage: Storage, positions: Positions, index: Positions, sizes: Mapping[int, int | None]
) -> Storage:
    def move(array: Array) -> Array:
        return compress(_spread(view, array, index)[positions])

    moved = storage.map(move)
    if _has_pattern(moved, sizes):
        raise _pattern(view)
    return moved


def _has_pattern(storage: Storage, sizes: Mapping[int, int | None]) -> bool:
    return any(sizes.get(axis) is not None for axis in varies_on(storage))


def _pattern(view: View) -> Refused:
    return view.refuse("not-uniform", f"{view.node.op} would need a demand that alternates along an axis", UNIFORM)


def _backward(view: View, x: Storage, y: Storage, positions: Positions, index: Positions) -> Storage:
    parts = []
    for own, wanted in ((x.den, y.den), (x.num, y.num), (x.off, y.off)):
        flat = _spread(view, own, index).copy()
        values = _spread(view, wanted, positions)
        flat[positions.reshape(-1)] = values
        clash = flat[positions.reshape(-1)] != values
        if np.any(clash):
            text = f"{view.node.op} reads one element for outputs that would be stored differently"
            raise view.refuse("not-uniform", text, UNIFORM)
        parts.append(compress(flat.reshape(index.shape)))
    return Storage(*parts)


def _spread(view: View, array: Array, index: Positions) -> Array:
    """The array, flat, with one value for every position."""
    if any(size not in (1, full) for size, full in zip(array.shape, index.shape, strict=True)):
        text = f"{view.node.op} repeats one pattern along an axis on which the demand varies"
        raise view.refuse("not-uniform", text, UNIFORM)
    return np.broadcast_to(array, index.shape).reshape(-1)


def along_axis(view: View) -> dict[int, int | None]:
    """The one axis that the attribute names, all of it."""
    return {view.node.get_int("axis", 0): None}


def _split(view: View, index: Positions, output: int, along: Along) -> Positions:
    node, axis = view.node, view.node.get_int("axis", 0)
    if axis % index.ndim not in along:
        return index
    whole, sizes = index.shape[axis], node.get_ints("split") or _ints(view, 1)
    if sizes is None:
        size = -(-whole // node.get_int("num_outputs", len(node.outputs)))
        start = output * size
        size = min(size, whole - start)
    else:
        start, size = sum(sizes[:output]), sizes[output]
    if start < 0 or size < 0 or start + size > whole:
        raise view.refuse("unsupported-form", f"Split takes what axis {axis} of {whole} does not have", VALID)
    return np.take(index, np.arange(start, start + size), axis)


def _ints(view: View, slot: int) -> list[int] | None:
    """A constant list of integers at an input; None where the input is left out."""
    if not view.node.input(slot):
        return None
    constant = view.node.constant(slot)
    if constant is None:
        raise view.refuse("opaque-op", f"input {slot} of {view.node.op} is computed at run time", CONSTANT)
    return constant.ints()


def _sliced(view: View) -> dict[int, int | None]:
    """The axes that are cut."""
    node = view.node
    axes = node.get_ints("axes") or (_ints(view, 3) if node.version >= 10 else None)
    if axes is None:
        starts = node.get_ints("starts")
        (count,) = (node.graph.shape(node.input(1)) or (None,)) if starts is None else (len(starts),)
        if not isinstance(count, int):
            raise view.refuse("opaque-op", "the axes of Slice are known at run time only", CONSTANT)
        axes = list(range(count))
    return dict.fromkeys(axes)


def _slice(view: View, index: Positions, _: int, along: Along) -> Positions:
    axes = list(_sliced(view))
    if along.isdisjoint(axis % index.ndim for axis in axes):
        return index
    node = view.node
    starts, ends = (node.get_ints(name) or _ints(view, slot) or [] for slot, name in ((1, "starts"), (2, "ends")))
    steps = (_ints(view, 4) if node.version >= 10 else None) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % index.ndim in along:
            cut = [slice(None)] * index.ndim
            cut[axis] = as_slice(start, end, step, index.shape[axis])
            index = index[tuple(cut)]
    return index


def _block(view: View) -> int:
    return view.node.get_int("blocksize", 1)


def _depth_to_space(view: View, index: Positions, _: int, along: Along) -> Positions:
    block = _block(view)
    if not along:
        return index
    n, c, h, w = index.shape
    if view.node.get_string("mode", "DCR") == "DCR":
        parts = index.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = index.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(view: View, index: Positions, _: int, along: Along) -> Positions:
    block = _block(view)
    if not along:
        return index
    n, c, h, w = index.shape
    parts = index.reshape(n, c, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


def _tile(view: View, index: Positions, _: int, along: Along) -> Positions:
    repeats = [n if axis in along else 1 for axis, n in enumerate(_repeats(view))]
    known = [n for n in repeats if n is not None]
    if len(known) < len(repeats):
        raise view.refuse("opaque-op", "the repeats of Tile are not known", CONSTANT)
    affordable(view, [*index.shape, *known])
    return np.tile(index, known)


def _repeats(view: View) -> list[int | None]:
    """How often Tile repeats along each axis; None where that is not known."""
    x, y, repeats = view.port(0), view.port(OUT), view.node.constant(1)
    if repeats is None or repeats.shape != (x.rank,):
        return [1 if isinstance(n, int) and n == m else None for n, m in zip(x.shape, y.shape, strict=True)]
    return list(repeats.ints())


split = picks(along_axis, _split)
"""y_i = a part of x along an axis."""

slice_ = picks(_sliced, _slice)
"""y = x[start:end:step]."""

depth_to_space = picks(lambda view: {1: None, 2: 1, 3: 1}, _depth_to_space)
"""y = x with blocks of channels spread over positions."""

space_to_depth = picks(lambda view: {1: None, 2: _block(view), 3: _block(view)}, _space_to_depth)
"""y = x with blocks of positions gathered into channels."""

tile = picks(lambda view: {axis: None for axis, n in enumerate(_repeats(view)) if n != 1}, _tile)
"""y = x repeated."""


def expand(view: View) -> list[Accept]:
    """y = x repeated along axes of size one: the demand must not vary on these, unless x is a constant, which grows."""
    x, y = view.port(0), view.port(OUT)
    if x.fixed or not y.fixed:
        return [view.settle({OUT: x.storage.map(lambda array: lift(array, y.rank))})]
    lead, short = y.rank - x.rank, x.constant is None
    grown = {axis for axis in varies_on(y.storage) if axis < lead or (short and x.shape[axis - lead] == 1)}
    if grown:
        text = f"Expand repeats along axis {min(grown)}, on which the demand varies"
        raise view.refuse("not-uniform", text, UNIFORM)
    return [view.settle({0: y.storage.map(lambda array: array.reshape(array.shape[lead:]))})]
