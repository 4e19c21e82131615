"""Axes that a test may cut short: an operator treats all places along them alike, and nothing varies along them.

A group of axes of the input corresponds to a group of axes of the output. Where the size of such an axis stands in a
constant of the node (a target shape, scales), the test has a constant of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.certificate.least import even, least
from bnfold.graph import Dim, Node, Shape
from bnfold.sizes import factors

Axes = tuple[int, ...]
Group = tuple[Axes, Axes]
"""Axes of the input, and those of the outputs that they become."""

FEW = 4
"""Places along an axis that is cut short, where an operator would make more of them."""


def groups(node: Node, rank: int, made: int) -> list[Group]:
    """How the axes of a node's first input become those of its outputs; [] where that is not known.

    Args:
        node: an operator that moves elements, or computes with neighbours along some axes.
        rank: of its input.
        made: of its outputs.
    """
    found = _GROUPS.get(node.op)
    return [] if found is None else found(node, rank, made)


def _each(node: Node, rank: int, made: int) -> list[Group]:
    return [((axis,), (axis,)) for axis in range(rank)] if rank == made else []


def _resized(node: Node, rank: int, made: int) -> list[Group]:
    return [] if node.get_string("keep_aspect_ratio_policy", "stretch") != "stretch" else _each(node, rank, made)


def _transposed(node: Node, rank: int, made: int) -> list[Group]:
    order = node.get_ints("perm") or range(rank)[::-1]
    return [((before,), (after,)) for after, before in enumerate(order)]


def _last_two(node: Node, rank: int, made: int) -> list[Group]:
    return [*_each(node, rank, made)[:-2], ((rank - 2, rank - 1), (rank - 2, rank - 1))]


def _expanded(node: Node, rank: int, made: int) -> list[Group]:
    new = made - rank
    return [((axis - new,) if axis >= new else (), (axis,)) for axis in range(made)]


def _gathered(node: Node, rank: int, made: int) -> list[Group]:
    axis, more = node.get_int("axis", 0) % rank, made - rank
    found: list[Group] = [((other,), (other + more * (other > axis),)) for other in range(rank) if other != axis]
    return [*found, ((axis,), tuple(range(axis, axis + more + 1)))]


def _flattened(node: Node, rank: int, made: int) -> list[Group]:
    axis = node.get_int("axis", 1)
    axis += rank * (axis < 0)
    return [(tuple(range(axis)), (0,)), (tuple(range(axis, rank)), (1,))]


def _kept(node: Node, rank: int, made: int) -> list[Group]:
    """Squeeze and Unsqueeze: those of the shorter shape, among those of the longer one."""
    listed, constant = node.get_ints("axes"), node.constant(1)
    axes = listed if listed is not None else None if constant is None else constant.ints()
    longer = max(rank, made)
    if axes is None or abs(rank - made) != len({axis % longer for axis in axes}):
        return []
    others = [axis for axis in range(longer) if axis not in {axis % longer for axis in axes}]
    pairs = enumerate(others) if made > rank else ((axis, place) for place, axis in enumerate(others))
    return [((before,), (after,)) for before, after in pairs]


def _reduced(node: Node, rank: int, made: int) -> list[Group]:
    """Those that are reduced too."""
    constant = node.constant(1)
    axes = node.get_ints("axes") or (constant.ints() if constant is not None else [])
    if node.op in ("ArgMax", "ArgMin"):
        axes = [node.get_int("axis", 0)]
    if not axes:  # all of them, or none, or not known
        return []
    gone = {axis % rank for axis in axes}
    keep = bool(node.get_int("keepdims", 1))
    if made != (rank if keep else rank - len(gone)):
        return []
    behind = iter(range(made))
    return [((axis,), (next(behind),) if keep or axis not in gone else ()) for axis in range(rank)]


def reshaped(before: Shape, after: Shape) -> list[Group]:
    """The smallest groups of axes that hold as many elements in both shapes; [] where none are known."""
    names: dict[str, int] = {}
    sizes, made = ([_number(dim, names) for dim in shape] for shape in (before, after))
    found: list[Group] = []
    i = j = 0
    while i < len(sizes) or j < len(made):
        start, first, left, right = i, j, 1, 1
        while True:
            if i < len(sizes) and (left < right or (left == right and i == start) or j == len(made)):
                left, i = left * sizes[i], i + 1
            elif j < len(made):
                right, j = right * made[j], j + 1
            else:
                break
            if left == right and (i > start or i == len(sizes)) and (j > first or j == len(made)):
                break
        if left != right or not left:
            return []
        found.append((tuple(range(start, i)), tuple(range(first, j))))
    return found


def _number(dim: Dim, names: dict[str, int]) -> int:
    """A number for a size, with a prime of its own for each name; 0 where nothing is known."""
    number, parts = (0, ()) if dim is None else factors(dim)
    for name in parts:
        if len(names) == len(_PRIMES):
            return 0
        number *= names.setdefault(name, _PRIMES[len(names)])
    return number


_PRIMES = tuple(2**power - 1 for power in (61, 89, 107, 127, 521, 607))
"""More than any size is, and factors of none."""


_GROUPS: dict[str, Callable[[Node, int, int], list[Group]]] = {
    **dict.fromkeys(("Pad", "Slice", "Split", "Compress", "Upsample", "Tile", "CumSum"), _each),
    **dict.fromkeys(("SpaceToDepth", "DepthToSpace"), _each),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2"), _reduced),
    **dict.fromkeys(("ReduceSumSquare", "ReduceLogSumExp", "ArgMax", "ArgMin"), _reduced),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _kept),
    "Resize": _resized,
    "Transpose": _transposed,
    "Trilu": _last_two,
    "Expand": _expanded,
    "Flatten": _flattened,
    "Gather": _gathered,
}


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


def _parts(node: Node) -> list[int]:
    listed, constant = node.get_ints("split"), node.constant(1)
    sizes = list(listed) if listed is not None else [] if constant is None else constant.ints()
    return [min(2, size) for size in sizes]


def _of_split(node: Node, axes: Sequence[int], sizes: Sequence[int]) -> dict[int, NDArray[Any]]:
    along = node.get_int("axis", 0) % len(sizes) in axes and node.constant(1) is not None
    return {1: np.array(_parts(node), np.int64)} if along else {}


def _of_slice(node: Node, axes: Sequence[int], sizes: Sequence[int]) -> dict[int, NDArray[Any]]:
    """All but the first place, or but the last one where it goes back."""
    listed = [node.constant(slot) for slot in (1, 2, 3, 4)]
    starts, ends, own, steps = ([] if constant is None else constant.ints() for constant in listed)
    if not starts or not ends:
        return {}
    for place, axis in enumerate(own or range(len(starts))):
        if axis % len(sizes) in axes:
            back = bool(steps) and steps[place] < 0
            starts[place], ends[place] = (-2, -(1 << 30)) if back else (1, 1 << 30)
    return {1: np.array(starts, np.int64), 2: np.array(ends, np.int64)}


def _of_gather(node: Node, axes: Sequence[int], sizes: Sequence[int]) -> dict[int, NDArray[Any]]:
    axis = node.get_int("axis", 0) % len(sizes)
    constant = node.constant(1)
    shape = node.graph.shape(node.inputs[1]) if constant is None else constant.shape
    if axis not in axes or shape is None:
        return {}
    few = [min(FEW, dim) if isinstance(dim, int) else 2 for dim in shape]
    return {1: (7 * np.arange(math.prod(few)) + 1).reshape(few) % sizes[axis]}


def _of_compress(node: Node, axes: Sequence[int], sizes: Sequence[int]) -> dict[int, NDArray[Any]]:
    axis = node.get_int("axis", 0) % len(sizes)
    return {1: np.arange(sizes[axis]) % 2 == 1} if axis in axes else {}


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
