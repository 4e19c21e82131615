"""Operators that pick elements along one axis by a list.

Source: ONNX operators Gather-1/11/13, Compress-9/11.
"""

from __future__ import annotations

import math

import numpy as np

from bnfold.affine import Array
from bnfold.rules.base import OUT, Accept, View, affordable, compress
from bnfold.rules.indexing import Along, Positions, along_axis, picks
from bnfold.rules.unlocks import CONSTANT, VALID


def _gather(view: View, index: Positions, _: int, along: Along) -> Positions:
    axis, constant = view.node.get_int("axis", 0), view.node.constant(1)
    if axis % index.ndim not in along:
        return index
    if constant is None:
        raise view.refuse("opaque-op", "the indices of Gather are computed at run time", CONSTANT)
    picked = np.asarray(constant.load(), np.int64).reshape(-1)
    size = index.shape[axis]
    if np.any((picked < -size) | (picked >= size)):
        raise view.refuse("unsupported-form", f"Gather picks what axis {axis} of {size} does not have", VALID)
    affordable(view, [index.size // max(1, size), picked.size])
    return np.take(index, picked, axis)


def _compressed(view: View, index: Positions, _: int, along: Along) -> Positions:
    axis, chosen = view.node.get_int("axis", 0), view.node.constant(1)
    if axis % index.ndim not in along:
        return index
    if chosen is None:
        raise view.refuse("opaque-op", "the condition of Compress is computed at run time", CONSTANT)
    return np.compress(np.asarray(chosen.load(), np.bool_).reshape(-1), index, axis)


def _given_axis(view: View) -> dict[int, int | None]:
    if "axis" not in view.node.attributes:
        raise view.refuse("opaque-op", "Compress without an axis flattens", "give Compress an axis")
    return along_axis(view)


_gather_list = picks(along_axis, _gather)


def gather(view: View) -> list[Accept]:
    """y = x picked along an axis by indices; their axes stand in its place (none for a single index)."""
    out, rank, constant = view.port(OUT), view.port(0).rank, view.node.constant(1)
    axis, count = view.node.get_int("axis", 0) % rank, out.rank - rank + 1
    if count == 1:
        return _gather_list(view)
    shape = view.node.graph.shape(view.node.inputs[1]) if constant is None else constant.shape
    sizes = [n for n in shape or () if isinstance(n, int)]

    def flat(array: Array) -> Array:
        given = array.shape[axis : axis + count]
        if any(size != 1 for size in given):
            if len(sizes) < count:
                raise view.refuse("opaque-op", "the indices of Gather are computed at run time", CONSTANT)
            full = (*array.shape[:axis], *sizes, *array.shape[axis + count :])
            affordable(view, full)
            array = np.broadcast_to(array, full)
        return array.reshape(*array.shape[:axis], -1, *array.shape[axis + count :])

    def spread(array: Array) -> Array:
        full = sizes if array.shape[axis] != 1 else (1,) * count
        return compress(array.reshape(*array.shape[:axis], *full, *array.shape[axis + 1 :]))

    picked = math.prod(sizes) if len(sizes) == count else None
    dims = (*out.shape[:axis], picked, *out.shape[axis + count :])
    listed = view._replace(ports={**view.ports, OUT: out._replace(shape=dims, storage=out.storage.map(flat))})
    return [
        Accept({key: s.map(spread) if key == OUT else s for key, s in accept.assign.items()}, accept.edits)
        for accept in _gather_list(listed)
    ]


compressed = picks(_given_axis, _compressed)
"""y = x where a constant condition holds along an axis (Compress)."""
