"""Ops that move, make or convert elements without computing on them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from bnfold.kernels.base import Array, Call, ints, is_float, kernel, numpy_type


@kernel("Identity")
def identity(call: Call, x: Any) -> Any:
    """The input."""
    return x


@kernel("Optional", "OptionalGetElement")
def optional(call: Call, x: Any = None) -> Any:
    """The input; nothing where there is none."""
    return (x,)


@kernel("Cast")
def cast(call: Call, x: Array) -> Array:
    """To an integer type: towards zero. To any float type: float64, not rounded."""
    return _converted(call, x, numpy_type(_type_code(call.get("to"))))


@kernel("CastLike")
def cast_like(call: Call, x: Array, like: Array) -> Array:
    """As Cast, to the type of the second input."""
    return _converted(call, x, like.dtype)


def _type_code(to: Any) -> int:
    """Opset 1 to 5 name the type as a string."""
    return int(onnx.TensorProto.DataType.Value(to)) if isinstance(to, str) else int(to)


def _converted(call: Call, x: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind in "OUS" or x.dtype.kind in "OUS":
        raise call.refuse("strings")
    if is_float(x) and dtype.kind in "iu":
        # Out of range and NaN are undefined in ONNX; numpy would warn.
        with np.errstate(invalid="ignore"):
            return np.trunc(x).astype(dtype)
    return x.astype(dtype, copy=False)


@kernel("Reshape")
def reshape(call: Call, x: Array, shape: Array | None = None) -> Array:
    """0 keeps the input's size at that place (unless allowzero), -1 is what remains; opset 1 has an attribute."""
    target = ints(call.get("shape") if shape is None else shape)
    if not call.get("allowzero", 0):
        target = [x.shape[at] if size == 0 else size for at, size in enumerate(target)]
    return x.reshape(target)


@kernel("Flatten")
def flatten(call: Call, x: Array) -> Array:
    """Two axes: those before `axis`, and the rest."""
    axis = int(call.get("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@kernel("Transpose")
def transpose(call: Call, x: Array) -> Array:
    """The axes in the order of `perm`, or reversed."""
    return x.transpose(call.get("perm"))


@kernel("Squeeze")
def squeeze(call: Call, x: Array, axes: Array | None = None) -> Array:
    """Drop axes of size 1: those named, or all."""
    chosen = call.attributes.get("axes") if axes is None else axes
    if chosen is None:
        return x.squeeze()
    return x.squeeze(tuple(ints(chosen)))


@kernel("Unsqueeze")
def unsqueeze(call: Call, x: Array, axes: Array | None = None) -> Array:
    """New axes of size 1, at places of the output."""
    chosen = ints(call.get("axes") if axes is None else axes)
    return np.expand_dims(x, tuple(chosen))


@kernel("Concat")
def concat(call: Call, *parts: Array) -> Array:
    """The inputs one after another along `axis` (1 where opset 1 leaves it out)."""
    return np.concatenate(parts, axis=int(call.get("axis", 1)))


@kernel("Split")
def split(call: Call, x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    """Parts along `axis`: of the sizes given, or as equal as they can be (the last one smaller)."""
    axis = int(call.get("axis", 0)) % x.ndim
    given = call.attributes.get("split") if sizes is None else sizes
    if given is None:
        number = int(call.get("num_outputs") or len(call.outputs))
        each = -(-x.shape[axis] // number)
        lengths = [min(each, max(0, x.shape[axis] - each * part)) for part in range(number)]
    else:
        lengths = ints(given)
    return tuple(np.split(x, np.cumsum(lengths)[:-1], axis=axis))


@kernel("Slice")
def slice_(call: Call, x: Array, *arguments: Array | None) -> Array:
    """x[starts:ends:steps] on the axes named; below opset 10 all are attributes."""
    if call.version < 10:
        starts, ends, axes, steps = ints(call.get("starts")), ints(call.get("ends")), call.get("axes"), None
    else:
        padded = [*arguments, None, None][:4]
        assert padded[0] is not None and padded[1] is not None
        starts, ends, axes, steps = ints(padded[0]), ints(padded[1]), padded[2], padded[3]
    places = list(range(len(starts))) if axes is None else ints(axes)
    strides = [1] * len(starts) if steps is None else ints(steps)
    chosen: list[slice] = [slice(None)] * x.ndim
    for start, end, place, stride in zip(starts, ends, places, strides, strict=True):
        size = x.shape[place]
        # Going backwards, a start before the first element is the first, and an end there is past it: None for Python.
        last = None if stride < 0 and end < -size else end
        first = max(start, -size) if stride < 0 else start
        chosen[place] = slice(first, last, stride)
    return x[tuple(chosen)]


@kernel("Compress")
def compress(call: Call, x: Array, condition: Array) -> Array:
    """The slices at which the condition holds, along an axis or of all elements in a row."""
    return np.compress(condition, x, call.get("axis"))


@kernel("Gather")
def gather(call: Call, x: Array, indices: Array) -> Array:
    """numpy.take along `axis`."""
    return np.asarray(np.take(x, indices, axis=int(call.get("axis", 0))))


@kernel("GatherElements")
def gather_elements(call: Call, x: Array, indices: Array) -> Array:
    """One index per element of the output, along `axis`."""
    axis = int(call.get("axis", 0)) % x.ndim
    limits = tuple(slice(0, size) if at != axis else slice(None) for at, size in enumerate(indices.shape))
    return np.take_along_axis(x[limits], np.where(indices < 0, indices + x.shape[axis], indices), axis=axis)


@kernel("Expand")
def expand(call: Call, x: Array, shape: Array) -> Array:
    """Broadcast in both directions."""
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(ints(shape))))


@kernel("Tile")
def tile(call: Call, x: Array, repeats: Array, axis: Array | None = None) -> Array:
    """Copies along each axis; opset 1 along one axis only."""
    if axis is None:
        return np.tile(x, ints(repeats))
    counts = [1] * x.ndim
    counts[int(axis.ravel()[0])] = int(repeats.ravel()[0])
    return np.tile(x, counts)


@kernel("Pad")
def pad(
    call: Call, x: Array, pads: Array | None = None, value: Array | None = None, axes: Array | None = None
) -> Array:
    """Elements before and after each axis; a negative number takes elements away."""
    amounts = pad_amounts(call, x, pads, axes)
    widths = [(max(0, before), max(0, after)) for before, after in amounts]
    cuts = [
        slice(max(0, -before), size - max(0, -after)) for (before, after), size in zip(amounts, x.shape, strict=True)
    ]
    mode = call.get("mode", "constant")
    if mode == "constant":
        fill = call.get("value", 0.0) if value is None or value.size == 0 else value.ravel()[0]
        return np.pad(x[tuple(cuts)], widths, constant_values=np.asarray(fill).astype(x.dtype))
    padded: Array = np.pad(x[tuple(cuts)], widths, mode=mode)
    return padded


def pad_amounts(call: Call, x: Array, pads: Array | None, axes: Array | None) -> list[tuple[int, int]]:
    """What a Pad adds before and after each axis."""
    given = ints((call.get("pads") or call.get("paddings")) if pads is None else pads)
    places = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in ints(axes)]
    amounts = [(0, 0)] * x.ndim
    for at, place in enumerate(places):
        amounts[place] = (given[at], given[at + len(places)])
    return amounts


@kernel("DepthToSpace")
def depth_to_space(call: Call, x: Array) -> Array:
    """Channels become blocks of pixels; DCR has the block first in the channel order, CRD the channel."""
    n, c, h, w = x.shape
    block = int(call.get("blocksize"))
    if call.get("mode", "DCR") == "CRD":
        y = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        y = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // block**2, h * block, w * block)


@kernel("SpaceToDepth")
def space_to_depth(call: Call, x: Array) -> Array:
    """Blocks of pixels become channels."""
    n, c, h, w = x.shape
    block = int(call.get("blocksize"))
    y = x.reshape(n, c, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * block**2, h // block, w // block)


@kernel("Shape")
def shape_of(call: Call, x: Array) -> Array:
    """The sizes of the axes from `start` to `end`."""
    return np.array(x.shape[call.get("start", 0) : call.get("end")], np.int64)


@kernel("Size")
def size_of(call: Call, x: Array) -> Array:
    """The number of elements."""
    return np.array(x.size, np.int64)


@kernel("ConstantOfShape")
def constant_of_shape(call: Call, shape: Array) -> Array:
    """One value, float 0 where none is given, in every place."""
    value = call.attributes.get("value")
    fill = np.zeros(1) if value is None else np.asarray(value)
    return np.full(tuple(ints(shape)), fill.ravel()[0], fill.dtype)


@kernel("Range")
def range_(call: Call, start: Array, limit: Array, delta: Array) -> Array:
    """start, start + delta, ... below limit."""
    values: Array = start.item() + np.arange(range_count(start, limit, delta)) * delta.item()
    return values.astype(start.dtype)


def range_count(start: Array, limit: Array, delta: Array) -> int:
    """How many numbers a Range makes."""
    return max(0, int(np.ceil((limit.item() - start.item()) / delta.item())))


@kernel("NonZero")
def non_zero(call: Call, x: Array) -> Array:
    """The indices of the elements that are not 0, one row per axis."""
    return np.array(np.nonzero(x), np.int64).reshape(x.ndim, -1)


@kernel("EyeLike")
def eye_like(call: Call, x: Array) -> Array:
    """Ones on the k-th diagonal."""
    code = call.attributes.get("dtype")
    y: Array = np.eye(x.shape[0], x.shape[1], k=int(call.get("k", 0)))
    return y.astype(x.dtype if code is None else numpy_type(int(code)))


@kernel("Trilu")
def trilu(call: Call, x: Array, k: Array | None = None) -> Array:
    """The upper or lower triangle of the last two axes."""
    diagonal = 0 if k is None else int(k.ravel()[0])
    return np.triu(x, diagonal) if call.get("upper", 1) else np.tril(x, diagonal)
