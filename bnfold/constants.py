"""Constants: initializers, and whatever a chain of nodes computes from them alone.

Values are loaded when asked for and never kept, except small ones. Float arithmetic on constants is done in float64
and not rounded in between, nor by a Cast to another float type; `Constant.grain` tells how coarse a runtime is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from bnfold.affine import Array
from bnfold.constant_functions import FUNCTIONS, TYPES, Arguments, Function
from bnfold.source import FLOATS, array_of, check_size, is_beside, is_external, limits_of, reader_of

Value = NDArray[np.generic]

SMALL = 4096
"""Values of at most this many bytes are kept once they were read; and so is where the data in a mapped file lies."""


_FLOAT64 = np.dtype(np.float64)

MOST_INTS = 1 << 16
"""Numbers in a list of axes, sizes, pads or the like: no operator has as many axes, nor (`malformed`) outputs."""


class Room:
    """How many bytes the computed constants of one model may take, and how many numbers may be read to compute them:
    some, and a multiple of those that the model holds.

    A few bytes of a file can ask for any number of them.
    """

    BASE, TIMES = 1 << 27, 16
    """Of bytes."""

    READ_BASE, READ_TIMES = 1 << 27, 256
    """Of numbers that are read."""

    AFFINES, MANY = 1 << 22, 1 << 12
    """Of numbers that affines with many have, and how many are many: solving keeps some 15 arrays of them for each."""

    PRODUCTS = 64
    """Multiplications that take as long as reading a number does."""

    def __init__(self) -> None:
        self.left = self.BASE
        self.to_read = self.READ_BASE
        self.for_affines = self.AFFINES
        self._counted: set[int] = set()

    def enter(self, inputs: Iterable[Constant]) -> None:
        """Initializers are read: they make room, once each."""
        for given in inputs:
            if given.tensor is not None and id(given) not in self._counted:
                self._counted.add(id(given))
                size = math.prod(given.shape)
                self.left += self.TIMES * size * _itemsize(given.type)
                self.to_read += self.READ_TIMES * size

    def check(self, shape: Iterable[int]) -> tuple[int, ...]:
        """The shape, where there is room for such an array in float64, in which all is computed.

        Raises:
            ValueError: where there is not.
        """
        sizes = tuple(shape)
        if math.prod(sizes) * _FLOAT64.itemsize > self.left or any(size < 0 for size in sizes):
            raise ValueError("too large")
        return sizes

    def take(self, values: Iterable[Value], given: Iterable[Value] = ()) -> None:
        """Arrays were made; those that only look at what was given, or at each other, take nothing."""
        made = {id(root): root for root in map(_root, values)}
        for value in given:
            made.pop(id(_root(value)), None)
        self.left -= sum(value.nbytes for value in made.values())

    def read(self, numbers: int) -> None:
        """So many are read; `ValueError` where those are too many."""
        if numbers > self.to_read:
            raise ValueError("too much work")
        self.to_read -= numbers

    def has_for_affine(self, numbers: int) -> bool:
        """Whether there is room for one more affine with so many."""
        if numbers <= self.MANY:
            return True
        self.for_affines -= numbers
        return self.for_affines >= 0

    def multiply(self, numbers: int) -> None:
        """So many multiplications; `ValueError` where those are too many."""
        self.read(numbers // self.PRODUCTS)


def _root(value: Value) -> Value:
    """The array that holds the numbers of this one."""
    while isinstance(value.base, np.ndarray):
        value = value.base
    return value


def _itemsize(type_: int) -> int:
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(type_)).itemsize)


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that is known before the model runs."""

    name: str
    type: int
    """ONNX element type of the stored value."""
    shape: tuple[int, ...]
    load: Callable[[], Value]
    tensor: TensorProto | None = None
    """The initializer that holds the value as it is, None where nodes compute it."""

    part: Callable[[int, int], Value] | None = None
    """Some rows, where those can be had without all."""

    parts: int = 1
    """Stored constants that are read to make the value: more than one where merges stand behind merges."""

    grain: float = 0.0
    """The coarsest relative spacing of floats to which a runtime rounds on the way to the value; this one is not."""

    @property
    def is_float(self) -> bool:
        """Whether it is of a float type that bnfold folds."""
        return self.type in FLOATS

    def rows(self, start: int, stop: int) -> Value:
        """The values along the first axis, from one row to another (a scalar has one row)."""
        if self.part is not None:
            return self.part(start, stop)
        value = self.load()
        return value[start:stop] if value.ndim else value

    def float64(self) -> Array:
        """The values in float64."""
        return np.asarray(self.load(), dtype=np.float64)

    def ints(self) -> list[int]:
        """The values as a flat list of Python integers; of more than any list of an operator has, the first ones."""
        return [int(v) for v in np.real(self.load()).flat[:MOST_INTS]]


def from_initializer(tensor: TensorProto, base_dir: Path | None) -> Constant:
    """The constant that an initializer holds."""
    kept: list[Value] = []
    readers: list[Callable[[], Value]] = []

    def load() -> Value:
        if kept:
            return kept[0]
        if is_beside(tensor):
            readers[:] = readers or [reader_of(tensor, base_dir)]
            return readers[0]()
        value = array_of(tensor, base_dir)
        if value.nbytes <= SMALL or is_external(tensor):
            value.flags.writeable = False
            kept.append(value)
        return value

    return Constant(tensor.name, tensor.data_type, tuple(tensor.dims), load, tensor)


def evaluate(
    node: onnx.NodeProto, opset: int, inputs: Sequence[Constant | None], like: int, base_dir: Path | None, room: Room
) -> list[Constant] | None:
    """What a node computes from constants, None where it is not one that bnfold evaluates.

    Args:
        node: the node; every input that it needs must be a constant.
        opset: the ONNX opset, for operators whose arguments moved.
        inputs: its inputs, without those left out at the end; None where not known.
        like: element type of a CastLike's second input, which may itself be dynamic.
        base_dir: the model's folder, for external data.
        room: for all computed constants of the model.
    """
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Constant":
        return _constant_node(node, attributes, base_dir, room)
    kernel = _KERNELS.get(node.op_type)
    if kernel is None or any(given is None for given in inputs[: 1 if node.op_type == "CastLike" else None]):
        return None
    known = [given for given in inputs if given is not None]
    if not known or len(known) < len(inputs):
        return None
    try:
        if node.op_type not in ("Shape", "Size"):  # which read no value
            room.enter(known)
        if node.op_type not in _LOOKS:
            room.read(sum(math.prod(given.shape) for given in known))
        type_ = _result_type(node.op_type, attributes, known, like)
        call = _Call(attributes, opset, known, type_, len(node.output), room)
        values = kernel(call)
        room.take(values, call.loaded)
    except (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError, OverflowError, MemoryError):
        return None
    grain = max([_spacing(type_), *(given.grain for given in known)]) if type_ in FLOATS else 0.0
    return [_computed(name, type_, value, grain) for name, value in zip(node.output, values, strict=False)]


@dataclass(frozen=True)
class _Call:
    attributes: dict[str, onnx.AttributeProto]
    opset: int
    inputs: list[Constant]
    type: int
    outputs: int
    room: Room
    loaded: list[Value] = field(default_factory=list)

    def value(self, slot: int) -> Value:
        self.loaded.append(self.inputs[slot].load())
        return self.loaded[-1]

    def widened(self) -> list[Value]:
        """All values, floats in float64; `ValueError` where there is no room for those."""
        values = [self.value(slot) for slot in range(len(self.inputs))]
        self.room.check([sum(value.size for value in values if not _is_wide(value))])
        return [value if _is_wide(value) else value.astype(np.float64) for value in values]

    def ints(self, name: str, slot: int) -> list[int] | None:
        """An argument that was an attribute first and an input later."""
        if name in self.attributes:
            return list(self.attributes[name].ints)
        return self.inputs[slot].ints() if slot < len(self.inputs) else None

    def int(self, name: str, default: int) -> int:
        return self.attributes[name].i if name in self.attributes else default


def _computed(name: str, type_: int, value: Value, grain: float = 0.0) -> Constant:
    return Constant(name, type_, value.shape, lambda: value, grain=grain)


def _spacing(type_: int) -> float:
    """Of the floats of a type, relative to them."""
    return 2.0 ** -limits_of(FLOATS[type_]).nmant


def _result_type(op: str, attributes: dict[str, onnx.AttributeProto], inputs: list[Constant], like: int) -> int:
    if op in ("Shape", "Size"):
        return TensorProto.INT64
    if op == "Cast":
        to = attributes["to"]
        return to.i if to.type == onnx.AttributeProto.INT else int(TensorProto.DataType.Value(to.s.decode()))
    if op == "CastLike":
        if not like:
            raise ValueError("unknown type")
        return like
    if op == "ConstantOfShape":
        return attributes["value"].t.data_type if "value" in attributes else TensorProto.FLOAT
    return TYPES.get(op, inputs[1 if op == "Where" else 0].type)


def _constant_node(
    node: onnx.NodeProto, attributes: dict[str, onnx.AttributeProto], base_dir: Path | None, room: Room
) -> list[Constant] | None:
    if "value" in attributes:
        tensor, name = attributes["value"].t, node.output[0]
        check_size(tensor)
        return [Constant(name, tensor.data_type, tuple(tensor.dims), lambda: array_of(tensor, base_dir))]
    simple: tuple[tuple[str, int, Callable[[onnx.AttributeProto], object]], ...] = (
        ("value_float", TensorProto.FLOAT, lambda a: np.array(a.f, np.float32)),
        ("value_floats", TensorProto.FLOAT, lambda a: np.array(a.floats, np.float32)),
        ("value_int", TensorProto.INT64, lambda a: np.array(a.i, np.int64)),
        ("value_ints", TensorProto.INT64, lambda a: np.array(a.ints, np.int64)),
    )
    for key, type_, read in simple:
        if key in attributes:
            return [_computed(node.output[0], type_, np.asarray(read(attributes[key])))]
    if "sparse_value" in attributes:
        return _sparse(node.output[0], attributes["sparse_value"].sparse_tensor, room)
    return None


def _sparse(name: str, sparse: onnx.SparseTensorProto, room: Room) -> list[Constant] | None:
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(room.check(sparse.dims), values.dtype)
        dense[np.unravel_index(indices, dense.shape) if indices.ndim == 1 else tuple(indices.T)] = values
    except (ValueError, IndexError, TypeError, MemoryError):
        return None
    room.take([dense])
    return [_computed(name, sparse.values.data_type, dense)]


NEAR = 1e-3
"""Relative distance from an integer at which a computed float may be one, in its own type: or four of its grains."""


def _cast(call: _Call) -> list[Value]:
    given, value = call.inputs[0], call.value(0)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(call.type)
    if given.is_float and call.type in FLOATS:
        with np.errstate(over="ignore"):
            if np.any(np.isfinite(value) & ~np.isfinite(value.astype(dtype))):
                raise ValueError(given.name)
        return [value]
    call.room.check(value.shape)
    if value.dtype.kind == "f" and dtype.kind in "iub" and given.tensor is None and not _is_whole(value, given.grain):
        raise ValueError(given.name)
    if value.dtype.kind == "f" and dtype.kind in "iu":
        value = np.trunc(value)
        if not _fits(value, dtype):
            raise ValueError(given.name)  # every machine makes something else of it
    return [value.astype(dtype)]


def _is_whole(value: Value, grain: float) -> bool:
    """Whether the whole part of numbers is what a runtime makes it, which rounds to `grain` on the way to them."""
    near = np.rint(value)
    size = np.maximum(1.0, np.abs(value))
    doubtful = np.where(value == near, size * grain > 1.0, np.abs(value - near) <= max(NEAR, 4 * grain) * size)
    return not np.any(doubtful)


def _fits(value: Value, dtype: np.dtype[Any]) -> bool:
    """Whether whole numbers are within an integer type."""
    limits, ends = np.iinfo(dtype), [float(end) for end in (np.min(value, initial=0), np.max(value, initial=0))]
    return all(limits.min <= end < float(limits.max) + 1 for end in ends)


def _reshape(call: _Call) -> list[Value]:
    value, target = call.value(0), call.ints("shape", 1)
    assert target is not None
    if not call.int("allowzero", 0):
        target = [value.shape[i] if dim == 0 else dim for i, dim in enumerate(target)]
    return [_reshaped(call, value, *target)]


def _reshaped(call: _Call, value: Value, *shape: int) -> Value:
    if not value.flags.c_contiguous:
        call.room.check(value.shape)  # for a copy
    return value.reshape(shape)


def _unsqueeze(call: _Call) -> list[Value]:
    axes = call.ints("axes", 1)
    assert axes is not None
    return [np.expand_dims(call.value(0), tuple(axes))]


def _squeeze(call: _Call) -> list[Value]:
    axes = call.ints("axes", 1)
    return [np.squeeze(call.value(0), None if axes is None else tuple(axes))]


def _expand(call: _Call) -> list[Value]:
    value, target = call.value(0), call.inputs[1].ints()
    return [np.broadcast_to(value, call.room.check(np.broadcast_shapes(value.shape, tuple(target))))]


def _constant_of_shape(call: _Call) -> list[Value]:
    filler = numpy_helper.to_array(call.attributes["value"].t) if "value" in call.attributes else np.zeros(1, "f4")
    return [np.broadcast_to(filler.reshape(()), call.room.check(call.inputs[0].ints()))]


def _shape(call: _Call) -> list[Value]:
    shape = call.inputs[0].shape
    end = call.int("end", len(shape)) if "end" in call.attributes else None
    return [np.array(shape[call.int("start", 0) : end], np.int64)]


def _transpose(call: _Call) -> list[Value]:
    perm = list(call.attributes["perm"].ints) if "perm" in call.attributes else None
    return [np.transpose(call.value(0), perm)]


def _flatten(call: _Call) -> list[Value]:
    value = call.value(0)
    axis = call.int("axis", 1)
    axis += value.ndim if axis < 0 else 0
    return [_reshaped(call, value, math.prod(value.shape[:axis]), -1)]


def _slice(call: _Call) -> list[Value]:
    value = call.value(0)
    starts, ends, axes = (call.ints(name, i + 1) for i, name in enumerate(("starts", "ends", "axes")))
    steps = call.inputs[4].ints() if len(call.inputs) > 4 else None
    assert starts is not None and ends is not None
    index: list[slice] = [slice(None)] * value.ndim
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = i if axes is None else axes[i]
        index[axis] = as_slice(start, end, 1 if steps is None else steps[i], value.shape[axis])
    return [value[tuple(index)]]


def as_slice(start: int, end: int, step: int, size: int) -> slice:
    """Python's slice for ONNX's: walking backwards, a start before the first is the first, such an end is past it."""
    if step > 0:
        return slice(start, end, step)
    return slice(max(start, -size), None if end < -size else end, step)


def _gather(call: _Call) -> list[Value]:
    value, indices, axis = call.value(0), call.value(1), call.int("axis", 0)
    call.room.check([indices.size, value.size // max(1, value.shape[axis])])
    return [np.take(value, np.asarray(indices, np.int64), axis=axis)]


def _split(call: _Call) -> list[Value]:
    value, axis, sizes = call.value(0), call.int("axis", 0), call.ints("split", 1)
    if sizes is None:
        chunk = -(-value.shape[axis] // call.outputs)
        return list(np.split(value, range(chunk, value.shape[axis], chunk), axis))
    return list(np.split(value, np.cumsum(sizes)[:-1], axis))


def _range(call: _Call) -> list[Value]:
    start, limit, delta = (call.value(i).item() for i in range(3))
    steps = np.asarray((limit - start) / delta)
    if not _is_whole(steps, max(given.grain for given in call.inputs)):
        raise ValueError(call.inputs[1].name)
    call.room.check([max(0, math.ceil(steps))])
    return [np.asarray(np.arange(start, limit, delta)).astype(onnx.helper.tensor_dtype_to_np_dtype(call.type))]


def _tile(call: _Call) -> list[Value]:
    value, repeats = call.value(0), call.inputs[1].ints()
    call.room.check([dim * n for dim, n in zip(value.shape, repeats, strict=True)])
    return [np.tile(value, repeats)]


def _concat(call: _Call) -> list[Value]:
    values = [call.value(slot) for slot in range(len(call.inputs))]
    call.room.check([sum(value.size for value in values)])
    return [np.concatenate(values, call.int("axis", 1))]


def _is_wide(value: Value) -> bool:
    """Whether numbers are computed with as they are: integers, and float64."""
    return value.dtype.kind in "iub" or value.dtype == _FLOAT64


def _arithmetic(compute: Callable[..., Value]) -> Callable[[_Call], list[Value]]:
    def kernel(call: _Call) -> list[Value]:
        if call.opset < 7 and ("axis" in call.attributes or call.int("broadcast", 0)):
            raise ValueError("broadcasting of opset 6 and before")
        call.room.check(np.broadcast_shapes(*(given.shape for given in call.inputs)))
        values = call.widened()
        with np.errstate(all="ignore"):
            return [np.asarray(compute(*values))]

    return kernel


def _function(compute: Function) -> Callable[[_Call], list[Value]]:
    def kernel(call: _Call) -> list[Value]:
        for given in call.inputs:
            call.room.check(given.shape)
        arguments = Arguments(
            call.widened(), call.attributes, call.opset, call.outputs, call.room.check, call.room.multiply
        )
        with np.errstate(all="ignore"):
            return [compute(arguments)]

    return kernel


def _divide(x: Value, y: Value) -> Value:
    if x.dtype.kind in "iu":  # integers are divided towards zero
        if np.any(y == 0) or (x.dtype.kind == "i" and np.any((y == -1) & (x == np.negative(x)) & (x != 0))):
            raise ZeroDivisionError  # undefined, and so is the least number by -1
        return np.asarray(np.trunc(np.divide(x, y))).astype(x.dtype)
    return np.asarray(np.divide(x, y))


_KERNELS: dict[str, Callable[[_Call], list[Value]]] = {
    "Identity": lambda call: [call.value(0)],
    "Cast": _cast,
    "CastLike": _cast,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "Size": lambda call: [np.array(math.prod(call.inputs[0].shape), np.int64)],
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Slice": _slice,
    "Gather": _gather,
    "Split": _split,
    "Range": _range,
    "Tile": _tile,
    "Concat": _concat,
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(_divide),
    "Sum": _arithmetic(lambda *values: np.asarray(sum(values[1:], values[0]))),
    "Max": _arithmetic(lambda *values: reduce(np.maximum, values)),
    "Min": _arithmetic(lambda *values: reduce(np.minimum, values)),
    "Pow": _arithmetic(np.power),
    "Neg": _arithmetic(np.negative),
    "Abs": _arithmetic(np.abs),
    "Sqrt": _arithmetic(np.sqrt),
    "Exp": _arithmetic(np.exp),
    "Log": _arithmetic(np.log),
    "Reciprocal": _arithmetic(lambda value: np.asarray(1.0 / value)),
    **{op: _function(compute) for op, compute in FUNCTIONS.items()},
}

_LOOKS = frozenset(
    {"Identity", "Reshape", "Unsqueeze", "Squeeze", "Expand", "ConstantOfShape", "Shape", "Size", "Transpose"}
    | {"Flatten", "Slice", "Split"}
)
"""Those that read no numbers: they look at them in another way, or make a copy, which takes room."""

EVALUATED = frozenset(_KERNELS) | {"Constant"}
"""The operators that are evaluated on constants."""
