"""Which axes of a node's input become which of its outputs, where all places along them are treated alike."""

from __future__ import annotations

from collections.abc import Callable

from bnfold.graph import Dim, Node, Shape
from bnfold.sizes import factors

Axes = tuple[int, ...]
Group = tuple[Axes, Axes]
"""Axes of the input, and those of the outputs that they become."""


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
