"""How long an axis of unknown size must be in a sample, so that the node makes something of it.

What a constant of the node presupposes: that its indices lie within, that there is something to cut off, blocks that
come out even.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from bnfold.graph import Node, Shape
from bnfold.sizes import factors

FAR = 1 << 20
"""What is further away stands for the end of an axis, or for nothing that is there."""


def least(node: Node) -> dict[int, int]:
    """For axes of the node's first input, counted from the first, the smallest size that is of use."""
    found = _LEAST.get(node.op)
    rank = node.graph.rank(node.inputs[0]) or 0
    return {} if found is None or not rank else {axis % rank: size for axis, size in found(node).items() if size < FAR}


def even(node: Node) -> dict[int, int]:
    """For axes of the node's first input the number that their size must be a multiple of."""
    block = node.get_int("blocksize", 1)
    return {"SpaceToDepth": {2: block, 3: block}, "DepthToSpace": {1: block * block}}.get(node.op, {})


def settled(entering: Shape, leaving: Shape) -> dict[object, int]:
    """Sizes for what is free in the shape that a Reshape reads, so that it holds as many elements as what is made.

    Args:
        entering: the shape that it reads.
        leaving: the shape that it makes.

    Returns:
        Sizes by name, or by (0, axis) for an axis of the first shape that has none. None where any will do, or nothing.
    """
    given, read = _parts(entering, 0)
    wanted, made = _parts(leaving, -1)
    free, rest = read - made, made - read
    once = [part for part, count in free.items() if count == 1]
    if not once or not given or not wanted:
        return {}
    factor = wanted // math.gcd(wanted, given)
    if (factor == 1 and rest) or (not rest and given * factor != wanted):
        return {}
    return dict.fromkeys(free, 1) | {once[-1]: factor}


def _parts(shape: Shape, slot: int) -> tuple[int, Counter[object]]:
    """The number of elements as a number, and names for what is not known."""
    number, parts = 1, Counter[object]()
    for axis, dim in enumerate(shape):
        if not dim and dim != 0:
            parts[slot, axis] += 1
            continue
        more, names = factors(dim)
        number *= more
        parts.update(names)
    return number, parts


def _numbers(node: Node, name: str, slot: int) -> list[int]:
    """A list of an attribute, or of a constant in its place."""
    listed, constant = node.get_ints(name), node.constant(slot)
    return list(listed) if listed is not None else [] if constant is None else constant.ints()


def _reach(number: int) -> int:
    """The size of an axis that has this index, from its start or from its end."""
    return number + 1 if number >= 0 else -number


def _gather(node: Node) -> dict[int, int]:
    indices = _numbers(node, "", 1)
    return {node.get_int("axis", 0): max(map(_reach, indices), default=0)}


def _compress(node: Node) -> dict[int, int]:
    return {node.get_int("axis", 0): len(_numbers(node, "", 1))}


def _slice(node: Node) -> dict[int, int]:
    starts, ends = _numbers(node, "starts", 1), _numbers(node, "ends", 2)
    axes = _numbers(node, "axes", 3) or range(len(starts))
    return {
        axis: max((1 + abs(number) for number in pair if abs(number) < FAR), default=0)
        for axis, *pair in zip(axes, starts, ends, strict=False)
    }


def _split(node: Node) -> dict[int, int]:
    parts = _numbers(node, "split", 1)
    return {node.get_int("axis", 0): sum(parts) or len(node.outputs)}


def _pad(node: Node) -> dict[int, int]:
    borders = _numbers(node, "pads", 1)
    axes = _numbers(node, "axes", 3) or range(len(borders) // 2)
    pairs = zip(axes, borders[: len(borders) // 2], borders[len(borders) // 2 :], strict=False)
    return {axis: 1 + max(0, -before) + max(0, -after) for axis, before, after in pairs}


def _resize(node: Node) -> dict[int, int]:
    scales = node.constant(1 if node.version < 11 else 2)
    numbers = [] if scales is None else scales.float64().ravel().tolist()
    axes = node.get_ints("axes") or range(len(numbers))
    return {axis: math.ceil(min(1 / scale, FAR)) for axis, scale in zip(axes, numbers, strict=False) if scale > 0}


_LEAST: dict[str, Callable[[Node], dict[int, int]]] = {
    "Gather": _gather,
    "Compress": _compress,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
}
