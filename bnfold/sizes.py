"""Sizes known only by name, and integer tensors that hold them: what Shape, Gather, Concat and the like compute.

A size is a number, a name, or a product ``2 * H * W`` of these in one fixed order, so that equal products are equal
texts. An integer tensor of at most one axis is a tuple of sizes, with None where nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

from bnfold.constants import as_slice

if TYPE_CHECKING:
    from bnfold.graph import Dim, Node, Shape

Values = tuple["Dim", ...]
Read = Callable[[int], Values | None]
"""The sizes in an input of a node, by slot; None where the input is not such a tensor."""

MAX_VALUES = 64
"""Entries of a tensor that is taken for one of sizes."""

MAX_TEXT = 200
"""Characters of a product; longer ones are forgotten."""

_TIMES = " * "

_DIGITS = 40
"""Longer ones are names that somebody gave: no product has as many."""


def factors(size: int | str) -> tuple[int, tuple[str, ...]]:
    """The number in a product, and its names in order."""
    if isinstance(size, int):
        return size, ()
    first, *rest = parts = size.split(_TIMES)
    return (int(first), tuple(rest)) if rest and len(first) < _DIGITS and first.isdecimal() else (1, tuple(parts))


def product(sizes: Sequence[Dim]) -> Dim:
    """The product of sizes, None where one is not known."""
    number, names = 1, list[str]()
    for size in sizes:
        if size is None:
            return None
        more, named = factors(size)
        number *= more
        names += named
    return _joined(number, names)


def quotient(size: Dim, by: Dim) -> Dim:
    """`size` divided by a factor of it; None where it is not known to be one."""
    if size is None or by is None or by == 0:
        return None
    (number, names), (divisor, others) = factors(size), factors(by)
    rest = list(names)
    for name in others:
        if name not in rest:
            return None
        rest.remove(name)
    return _joined(number // divisor, rest) if number % divisor == 0 else None


def _joined(number: int, names: list[str]) -> Dim:
    if not names or not number:
        return number
    text = _TIMES.join([str(number)] * (number != 1) + sorted(names))
    return text if len(text) <= MAX_TEXT else None


def reshaped(shape: Shape | None, target: Values, allow_zero: bool) -> Shape:
    """The shape that a Reshape makes: 0 keeps a size, -1 takes what is left."""
    sizes: list[Dim] = []
    for axis, size in enumerate(target):
        keep = size == 0 and not allow_zero
        sizes.append((shape[axis] if shape is not None and axis < len(shape) else None) if keep else size)
    if -1 in target:
        others = [size for size in sizes if size != -1]
        rest = None if shape is None else quotient(product(shape), product(others))
        sizes[target.index(-1)] = rest
    return tuple(sizes)


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape that these broadcast to."""
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(_together(sizes) for sizes in zip(*padded, strict=True))


def _together(sizes: Sequence[Dim]) -> Dim:
    """The size that these broadcast to: one that is larger than one wins; None where it may be any."""
    fixed = [size for size in sizes if isinstance(size, int) and size != 1]
    if fixed:
        return fixed[0]
    rest = {size for size in sizes if size != 1}
    return rest.pop() if len(rest) == 1 else None if rest else 1


def evaluate(node: Node, read: Read) -> Values | None:
    """The sizes that a node computes; None where it computes something else."""
    rule = _RULES.get(node.op)
    found = None if rule is None else rule(node, read)
    return found if found is None or len(found) <= MAX_VALUES else None


def _shape(node: Node, read: Read) -> Values | None:
    shape = node.graph.shape(node.input(0))
    if shape is None:
        return None
    end = node.get_int("end", len(shape)) if "end" in node.attributes else None
    return shape[node.get_int("start", 0) : end]


def _size(node: Node, read: Read) -> Values | None:
    shape = node.graph.shape(node.input(0))
    return None if shape is None else (product(shape),)


def _first(node: Node, read: Read) -> Values | None:
    return read(0)


def _gather(node: Node, read: Read) -> Values | None:
    values, indices = read(0), read(1)
    if values is None or indices is None or not all(isinstance(i, int) for i in indices):
        return None
    picked = [i for i in indices if isinstance(i, int) and -len(values) <= i < len(values)]
    return tuple(values[i] for i in picked) if len(picked) == len(indices) else None


def _slice(node: Node, read: Read) -> Values | None:
    values = read(0)
    ends = [_one(node, read, name, slot) for name, slot in (("starts", 1), ("ends", 2))]
    step = 1 if node.version < 10 or not node.input(4) else _one(node, read, "", 4)
    if values is None or not isinstance(ends[0], int) or not isinstance(ends[1], int) or not isinstance(step, int):
        return None
    return values[as_slice(ends[0], ends[1], step, len(values))] if step else None


def _one(node: Node, read: Read, name: str, slot: int) -> Dim:
    """A single number, from an attribute or an input."""
    given = node.get_ints(name)
    values = tuple(given) if given is not None else read(slot)
    return values[0] if values is not None and len(values) == 1 else None


def _concat(node: Node, read: Read) -> Values | None:
    parts = [read(slot) for slot in range(len(node.inputs))]
    known = [part for part in parts if part is not None]
    return sum(known, ()) if len(known) == len(parts) else None


def _reduce_prod(node: Node, read: Read) -> Values | None:
    values = read(0)
    return None if values is None else (product(values),)


def _filled(node: Node, read: Read) -> Values | None:
    """ConstantOfShape with a number of entries that is known."""
    count, value = read(0), node.attributes.get("value")
    if count is None or len(count) != 1 or not isinstance(count[0], int) or not 0 <= count[0] <= MAX_VALUES:
        return None
    filler = 0 if value is None else int(value.t.int64_data[0]) if value.t.int64_data else _raw_int(value.t.raw_data)
    return None if filler is None else (filler,) * count[0]


def _raw_int(data: bytes) -> int | None:
    return int.from_bytes(data, "little", signed=True) if len(data) in (4, 8) else None


def _where(node: Node, read: Read) -> Values | None:
    found = _spread([read(slot) for slot in range(3)])
    if found is None:
        return None
    return tuple((x if condition else y) if isinstance(condition, int) else None for condition, x, y in found)


def _equal(x: Dim, y: Dim) -> Dim:
    if x is None or y is None:
        return None
    if x == y:
        return 1
    numbers = [size for size in (x, y) if isinstance(size, int)]
    return 0 if len(numbers) == 2 or any(number < 0 for number in numbers) else None  # a size is never negative


def _add(x: Dim, y: Dim) -> Dim:
    if isinstance(x, int) and isinstance(y, int):
        return x + y
    return x if y == 0 else y if x == 0 else None


def _subtract(x: Dim, y: Dim) -> Dim:
    if isinstance(x, int) and isinstance(y, int):
        return x - y
    return x if y == 0 else 0 if x == y and x is not None else None


def _one_of(choose: Callable[[int, int], int]) -> Callable[[Dim, Dim], Dim]:
    """Max or Min, of numbers and of sizes that are the same."""

    def compute(x: Dim, y: Dim) -> Dim:
        if isinstance(x, int) and isinstance(y, int):
            return choose(x, y)
        return x if x == y else None

    return compute


def _divide(x: Dim, y: Dim) -> Dim:
    if isinstance(x, int) and isinstance(y, int):
        return None if y == 0 else (abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1)
    return quotient(x, y)


def _pairs(compute: Callable[[Dim, Dim], Dim]) -> Callable[[Node, Read], Values | None]:
    def rule(node: Node, read: Read) -> Values | None:
        found = _spread([read(slot) for slot in range(len(node.inputs))])
        return None if found is None else tuple(reduce(compute, entries) for entries in found)

    return rule


def _spread(values: Sequence[Values | None]) -> list[tuple[Dim, ...]] | None:
    """Entry by entry, those of length one repeated."""
    known = [value for value in values if value is not None]
    length = max((len(value) for value in known), default=0)
    if len(known) != len(values) or any(len(value) not in (1, length) for value in known):
        return None
    return list(zip(*(value * length if len(value) == 1 else value for value in known), strict=True))


_RULES: dict[str, Callable[[Node, Read], Values | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "ReduceProd": _reduce_prod,
    "ConstantOfShape": _filled,
    "Where": _where,
    "Equal": _pairs(_equal),
    "Add": _pairs(_add),
    "Sub": _pairs(_subtract),
    "Mul": _pairs(lambda x, y: product((x, y))),
    "Div": _pairs(_divide),
    "Max": _pairs(_one_of(max)),
    "Min": _pairs(_one_of(min)),
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"), _first),
}
