"""Operators that only move elements: the arrays of the demand move along.

Source: ONNX operators Transpose, Reshape, Flatten, Squeeze, Unsqueeze, Concat, Trilu.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.graph import Dim, Shape
from bnfold.rules.base import OUT, Accept, View, affordable, compress, restored_constant, varies_on
from bnfold.rules.elementwise import refuse_shift, same_on_both
from bnfold.rules.unlocks import SIZED, VALID
from bnfold.sizes import factors


def moves(
    forward: Callable[[View, Array], Array], backward: Callable[[View, Array], Array]
) -> Callable[[View], list[Accept]]:
    """A rule for one input and one output between which elements move."""

    def rule(view: View) -> list[Accept]:
        x, y = view.port(0), view.port(OUT)
        if x.fixed or not y.fixed:
            return [view.settle({OUT: x.storage.map(lambda array: forward(view, array))})]
        return [view.settle({0: y.storage.map(lambda array: backward(view, array))})]

    return rule


def _perm(view: View) -> list[int]:
    rank = view.port(0).rank
    perm = view.node.get_ints("perm") or list(reversed(range(rank)))
    if sorted(perm) != list(range(rank)):
        raise view.refuse("unsupported-form", f"perm does not permute {rank} axes", "nothing: no runtime can run it")
    return perm


transpose = moves(
    lambda view, array: array.transpose(_perm(view)),
    lambda view, array: array.transpose(np.argsort(_perm(view))),
)
"""y = x transposed: so are the arrays."""

reshape = moves(
    lambda view, array: _reshaped(view, array, view.port(0).shape, view.port(OUT).shape),
    lambda view, array: _reshaped(view, array, view.port(OUT).shape, view.port(0).shape),
)
"""y = x with another shape (Reshape, Flatten, Squeeze, Unsqueeze): the arrays too, where the dimensions allow it."""


def _reshaped(view: View, array: Array, old: Shape, new: Shape) -> Array:
    parts = groups(old, new)
    sizes: list[int] = []
    full: list[int] = []
    for before, after in parts:
        if all(array.shape[axis] == 1 for axis in before):
            full += [1] * len(before)
            sizes += [1] * len(after)
            continue
        if len(before) == 1 and len(after) == 1:
            full.append(array.shape[before[0]])
            sizes.append(array.shape[before[0]])
            continue
        old_dims, new_dims = [old[axis] for axis in before], [new[axis] for axis in after]
        known_old = [dim for dim in old_dims if isinstance(dim, int)]
        known_new = [dim for dim in new_dims if isinstance(dim, int)]
        if len(known_old) != len(old_dims) or len(known_new) != len(new_dims):
            raise view.refuse("not-uniform", f"{view.node.op} mixes channels with a dimension of unknown size", SIZED)
        if math.prod(known_old) != math.prod(known_new):
            raise view.refuse("unknown-shape", f"{view.node.op} goes from {old} to {new}, which do not match", VALID)
        full += known_old
        sizes += known_new
    affordable(view, full)
    return compress(np.broadcast_to(array, full).reshape(sizes))


def groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of axes of both shapes that hold the same elements, in order.

    From the front as far as the products of sizes agree, then from the back; what is left between holds the rest.
    """
    old, new = _named(old, new)
    front = _leading(old, new)
    i, j = (front[-1][side][-1] + 1 if front else 0 for side in (0, 1))
    rest = old[i:], new[j:]
    back = [
        ([len(old) - 1 - axis for axis in reversed(before)], [len(new) - 1 - axis for axis in reversed(after)])
        for before, after in reversed(_leading(rest[0][::-1], rest[1][::-1]))
    ]
    p, q = (back[0][side][0] if back else len(shape) for side, shape in enumerate((old, new)))
    between = (list(range(i, p)), list(range(j, q)))
    if not between[0] and not between[1]:
        return front + back
    ones = all(old[axis] == 1 for axis in between[0]) and all(new[axis] == 1 for axis in between[1])
    if ones or (between[0] and between[1]) or not (front or back):
        return [*front, between, *back]
    if front:  # what is known to hold one element belongs to a neighbour
        front[-1] = (front[-1][0] + between[0], front[-1][1] + between[1])
    else:
        back[0] = (between[0] + back[0][0], between[1] + back[0][1])
    return front + back


def _leading(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """The smallest groups at the front."""
    before, after = _running(old), _running(new)
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        found = next(((p, q) for p in range(i, len(old)) for q in range(j, len(new)) if before[p] == after[q]), None)
        if found is None:
            break
        p, q = found
        result.append((list(range(i, p + 1)), list(range(j, q + 1))))
        i, j = p + 1, q + 1
    return result


def _named(old: Shape, new: Shape) -> tuple[Shape, Shape]:
    """Give the one unknown dimension of both shapes the same name, where the others show that it is the same."""
    free_old = [axis for axis, dim in enumerate(old) if not isinstance(dim, int)]
    free_new = [axis for axis, dim in enumerate(new) if not isinstance(dim, int)]
    if len(free_old) == len(free_new) == 1:
        known = [math.prod(dim for dim in shape if isinstance(dim, int)) for shape in (old, new)]
        if known[0] == known[1]:
            return _replace(old, free_old[0], "?"), _replace(new, free_new[0], "?")
    fresh = iter(range(1 << 30))
    return tuple(
        tuple(dim if dim is not None else f"?{side}{next(fresh)}" for dim in shape)
        for side, shape in enumerate((old, new))
    )  # type: ignore[return-value]


def _replace(shape: Shape, axis: int, dim: Dim) -> Shape:
    return (*shape[:axis], dim, *shape[axis + 1 :])


def _running(shape: Shape) -> list[tuple[int, tuple[str, ...]]]:
    """Products of the leading dimensions: a number, and the names of the unknown ones."""
    number, names = 1, list[str]()
    result = []
    for dim in shape:
        factor, named = factors(dim) if dim is not None else (1, ("",))
        number *= factor
        names += named
        result.append((number, tuple(sorted(names))))
    return result


def triangle(view: View) -> list[Accept]:
    """y = x with zeros above or below a diagonal (Trilu): b = 0, any a for each element."""

    def check(storage: Storage) -> Storage:
        refuse_shift(view, storage, storage.off != 0)
        return storage

    return same_on_both(view, check)


def concat(view: View) -> list[Accept]:
    """y = x1, x2, ... along an axis: the demand on y is cut into theirs, theirs are joined into y's."""
    node, out = view.node, view.port(OUT)
    axis = node.get_int("axis", 1) % out.rank
    ports = [view.port(slot) for slot in range(len(node.inputs))]
    sizes = [size for port in ports if isinstance(size := port.shape[axis], int)]
    wants: dict[int, Storage] = {}
    if len(sizes) != len(ports):  # then all of them are stored alike
        fixed = [port.storage for port in (out, *ports) if port.fixed]
        if any(axis in varies_on(storage) for storage in fixed):
            text = f"the size of an input of {node.op} along axis {axis} is not known"
            raise view.refuse("unknown-shape", text, SIZED)
        wants = dict.fromkeys([OUT, *range(len(ports))], fixed[0])
    elif out.fixed:
        ends = np.cumsum(sizes)
        for slot, (end, size) in enumerate(zip(ends, sizes, strict=True)):
            wants[slot] = out.storage.map(partial(_cut, axis=axis, start=int(end) - size, stop=int(end)))
    else:
        parts = [port.storage for port in ports]
        wants[OUT] = Storage(
            _join(view, [part.den for part in parts], axis, sizes),
            _join(view, [part.num for part in parts], axis, sizes),
            _join(view, [part.off for part in parts], axis, sizes),
        )
    accept = view.settle(wants)
    edits = tuple(
        edit
        for slot, port in enumerate(ports)
        if port.constant is not None
        for edit in restored_constant(view, slot, "part")
    )
    return [Accept(accept.assign, edits)]


def _cut(array: Array, axis: int, start: int, stop: int) -> Array:
    """The part of the array from start to stop along an axis; all of it where it is constant along the axis."""
    if array.shape[axis] == 1:
        return array
    index = [slice(None)] * array.ndim
    index[axis] = slice(start, stop)
    return compress(array[tuple(index)])


def _join(view: View, arrays: list[Array], axis: int, sizes: list[int]) -> Array:
    """The arrays one behind the other along an axis, each with its full size there."""
    first = arrays[0]
    if first.size == 1 and all(array.size == 1 and array.flat[0] == first.flat[0] for array in arrays):
        return first
    flat = [array.shape[:axis] + (1,) + array.shape[axis + 1 :] for array in arrays]
    common = np.broadcast_shapes(*set(flat))
    affordable(view, [*common, sum(sizes)])
    full = [
        np.repeat(_spread(array, common, axis), size if array.shape[axis] == 1 else 1, axis)
        for array, size in zip(arrays, sizes, strict=True)
    ]
    return compress(np.concatenate(full, axis))


def _spread(array: Array, common: tuple[int, ...], axis: int) -> Array:
    """The array with the common sizes on all axes but one."""
    shape = (*common[:axis], array.shape[axis], *common[axis + 1 :])
    return array if array.shape == shape else np.broadcast_to(array, shape)
