"""A test with axes that are cut short: an operator treats all places along them alike, and nothing varies along them.

Where the size of such an axis stands in a constant of the node (a target shape, scales), the test has one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.certificate.groups import Group
from bnfold.certificate.least import even, least
from bnfold.graph import Dim, Node, Shape

FEW = 4
"""Places along an axis that is cut short, where an operator would make more of them."""


def in_place(cut: Iterable[Group], before: Shape, after: Shape) -> tuple[list[Dim], list[Dim]]:
    """The shapes before and behind a Reshape, two places in all along each group that is cut short."""
    shapes = list(before), list(after)
    for group in cut:
        number = 1 if all(before[axis] == 1 for axis in group[0]) else 2
        for axes, sizes in zip(group, shapes, strict=True):
            for place, axis in enumerate(axes):
                sizes[axis] = number if place == 0 else 1
    return shapes


def short(node: Node, axis: int) -> int:
    """How long an axis of the input is that is cut short."""
    if node.op == "Split":
        parts = _parts(node)
        return sum(parts) if parts else 2 * len(node.outputs)
    multiple = even(node).get(axis, 1)
    wanted = 0 if node.op in _OTHERS and node.constant(1) is not None else least(node).get(axis, 0)
    return -(-max(FEW, wanted) // multiple) * multiple


def constants(node: Node, cut: Iterable[Group], before: Shape, sizes: Sequence[int]) -> dict[int, NDArray[Any]]:
    """What a node is given in place of its constants, to make no more than a few places along axes that are cut short.

    Args:
        node: the node.
        cut: the groups of axes that are cut short.
        before: the shape of its input.
        sizes: the same in the test.

    Returns:
        Values by input slot.
    """
    if node.op in _OTHERS:
        return _OTHERS[node.op](node, [axes[0] for axes, _ in cut if len(axes) == 1], sizes)
    found: dict[int, NDArray[Any]] = {}
    places = {behind[0]: axes for axes, behind in cut if behind}
    for slot, fewer in _FEWER.get(node.op, {}).items():
        constant = node.constant(slot)
        if constant is None or constant.shape in ((), (0,)):
            continue
        found[slot] = values = np.array(constant.load()).ravel()
        listed = (node.get_ints("axes") if node.op == "Resize" else None) or range(len(values))
        rank = len(before) if node.op == "Resize" else len(values)
        for place, axis in enumerate(listed):
            if axis % rank in places:
                axes = places[axis % rank]
                known, size = (before[axes[0]], sizes[axes[0]]) if axes else (1, 1)
                values[place] = fewer(values[place], known, size)
    return found


def span(step: int) -> tuple[int, int]:
    """Start and end of a Slice in a test: all but the first place, or but the last one where it goes back."""
    return (1, 1 << 30) if step > 0 else (-2, -(1 << 30))


def indices(shape: Sequence[int], size: int) -> NDArray[np.int64]:
    """What a Gather reads in a test, of an axis of this size: many places, in no simple order."""
    return (7 * np.arange(math.prod(shape), dtype=np.int64) + 1).reshape(shape) % size


def condition(size: int) -> NDArray[np.bool_]:
    """What a Compress keeps in a test, of an axis of this size: every second place."""
    return np.equal(np.arange(size) % 2, 1)


def _parts(node: Node) -> list[int]:
    listed, constant = node.get_ints("split"), node.constant(1)
    sizes = list(listed) if listed is not None else [] if constant is None else constant.ints()
    return [min(2, size) for size in sizes]


def _of_split(node: Node, axes: Sequence[int], sizes: Sequence[int]) -> dict[int, NDArray[Any]]:
    along = node.get_int("axis", 0) % len(sizes) in axes and node.constant(1) is not None
    return {1: np.array(_parts(node), np.int64)} if along else {}


def _of_slice(node: Node, axes: Sequence[int], sizes: Sequence[int]) -> dict[int, NDArray[Any]]:
    listed = [node.constant(slot) for slot in (1, 2, 3, 4)]
    starts, ends, own, steps = ([] if constant is None else constant.ints() for constant in listed)
    if not starts or not ends:
        return {}
    for place, axis in enumerate(own or range(len(starts))):
        if axis % len(sizes) in axes:
            starts[place], ends[place] = span(steps[place] if steps else 1)
    return {1: np.array(starts, np.int64), 2: np.array(ends, np.int64)}


def _of_gather(node: Node, axes: Sequence[int], sizes: Sequence[int]) -> dict[int, NDArray[Any]]:
    axis = node.get_int("axis", 0) % len(sizes)
    constant = node.constant(1)
    shape = node.graph.shape(node.inputs[1]) if constant is None else constant.shape
    if axis not in axes or shape is None:
        return {}
    few = [min(FEW, dim) if isinstance(dim, int) else 2 for dim in shape]
    return {1: indices(few, sizes[axis])}


def _of_compress(node: Node, axes: Sequence[int], sizes: Sequence[int]) -> dict[int, NDArray[Any]]:
    axis = node.get_int("axis", 0) % len(sizes)
    return {1: condition(sizes[axis])} if axis in axes else {}


_OTHERS = {"Split": _of_split, "Slice": _of_slice, "Gather": _of_gather, "Compress": _of_compress}


def _few(value: Any, known: Dim, size: int) -> Any:
    """Of copies, of a scale."""
    return min(value, FEW)


def _few_copies(value: Any, known: Dim, size: int) -> Any:
    """Of a size that what is there is copied to, or has already."""
    return min(value, FEW if size == 1 else size)


def _few_places(value: Any, known: Dim, size: int) -> Any:
    """Of a size that what is there is interpolated to: larger, smaller or the same, as it was."""
    if not isinstance(known, int) or value > known:
        return min(value, 2 * size)
    return size if value == known else min(value, max(1, size // 2))


_FEWER: dict[str, dict[int, Callable[[Any, Dim, int], Any]]] = {
    "Tile": {1: _few},
    "Expand": {1: _few_copies},
    "Upsample": {1: _few},
    "Resize": {1: _few, 2: _few, 3: _few_places},
}
