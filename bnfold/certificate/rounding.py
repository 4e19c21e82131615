"""Stored constants against their exact values: half a unit in the last place, and the doubt of float64 arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from bnfold.affine import Array
from bnfold.constants import Constant, Value
from bnfold.source import is_external
from bnfold.threads import in_two

EPS = 2.0**-52
"""Twice the largest relative error of one float64 operation: one for each side of a comparison."""

CHUNK = 1 << 16
"""Elements of a constant that are looked at in one go: few enough for a processor's cache."""

MANY = 1 << 22
"""Elements of a constant from which on it is looked at in two threads."""

_PRECISION: dict[int, tuple[int, int]] = {
    TensorProto.FLOAT: (24, -149),
    TensorProto.DOUBLE: (53, -1074),
    TensorProto.FLOAT16: (11, -24),
    TensorProto.BFLOAT16: (8, -133),
}
"""Bits of the significand, and the exponent of the smallest subnormal."""


@dataclass(frozen=True, eq=False)
class Exact:
    """What a constant should be before it is rounded, and how far float64 arithmetic may be from that."""

    shape: tuple[int, ...]
    rows: Callable[[int, int], Array]
    """The values along the first axis, from one row to another (a scalar has one row)."""
    doubt: Array | None = None
    """How far each value may be off, of the same shape; None where a value is a short product, a few roundings off."""
    added: Array | None = None
    """What was added to the products last, of the same shape."""

    @staticmethod
    def of(value: Array, doubt: Array) -> Exact:
        """From arrays."""
        doubt = doubt if doubt.shape == value.shape else np.broadcast_to(doubt, value.shape)
        return Exact(value.shape, lambda start, stop: _cut(value, start, stop), doubt)

    @staticmethod
    def scaled(base: Constant, *factors: Array) -> Exact:
        """A constant times factors, each of its rank and with ones where it is constant."""
        factors = tuple(factor for factor in factors if (factor != 1).any())
        last: dict[tuple[int, int], Array] = {}  # the same rows are compared with what is stored, and then tested

        def rows(start: int, stop: int) -> Array:
            value = last.get((start, stop))
            if value is None:
                value = read_rows(base, start, stop)
                for factor in factors:
                    value *= factor if factor.ndim == 0 or factor.shape[0] == 1 else factor[start:stop]
                value.flags.writeable = False
                last.clear()
                last[start, stop] = value
            return value

        return Exact(base.shape, rows)

    @staticmethod
    def affine(base: Constant, scale: Array, shift: Array) -> Exact:
        """A constant times a factor and plus a term, both of its rank; it grows where it has one element for many."""
        shape = np.broadcast_shapes(base.shape, scale.shape, shift.shape)
        scale, shift = np.broadcast_to(scale, shape), np.broadcast_to(shift, shape)
        alone = base.shape[:1] != shape[:1]

        def rows(start: int, stop: int) -> Array:
            own = read_rows(base, 0, 1) if alone else read_rows(base, start, stop)
            return np.asarray(own * _cut(scale, start, stop) + _cut(shift, start, stop))

        return Exact(shape, rows, added=shift)

    def doubts(self, start: int, stop: int, value: Array) -> Array:
        """How far the values of these rows may be off."""
        if self.doubt is not None:
            return _cut(self.doubt, start, stop)
        size = np.abs(value)
        return 8 * EPS * (size if self.added is None else size + 2 * np.abs(_cut(self.added, start, stop)))

    @property
    def value(self) -> Array:
        """All of it."""
        return self.rows(0, self.shape[0] if self.shape else 1)


def _cut(array: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    return array[start:stop] if array.ndim else array


def read_rows(constant: Constant, start: int, stop: int) -> Array:
    """Rows of a constant in float64, as a copy.

    A memory map is opened anew for each call: the pages of the last one need not stay in memory.
    """
    value = constant.load()
    return np.array(_cut(value, start, stop), dtype=np.float64)


def spans(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Pieces of the first axis that hold about `CHUNK` elements each."""
    count = shape[0] if shape else 1
    step = max(1, CHUNK * count // max(1, math.prod(shape)))
    for start in range(0, count, step):
        yield start, min(start + step, count)


def in_memory(constant: Constant) -> Constant:
    """The constant with its values read once, where they are not a memory map anyhow."""
    if constant.tensor is not None and is_external(constant.tensor):
        return constant
    value = constant.load()
    return Constant(constant.name, constant.type, constant.shape, lambda: value, constant.tensor)


def identical(one: Constant, other: Constant) -> bool:
    """Whether two constants are the same, bit by bit."""
    if one.type != other.type or one.shape != other.shape:
        return False
    one, other = in_memory(one), in_memory(other)
    return all(_bytes(one, *span) == _bytes(other, *span) for span in spans(one.shape))


def _bytes(constant: Constant, start: int, stop: int) -> bytes:
    return np.ascontiguousarray(_cut(constant.load(), start, stop)).tobytes()


def _ulp(value: Array, type_: int) -> Array:
    """Unit in the last place of a float type at these values."""
    bits, smallest = _PRECISION[type_]
    exponent = np.where(value == 0, smallest, np.frexp(value)[1] - bits)
    return np.asarray(np.ldexp(1.0, np.maximum(exponent, smallest)))


def _rounding_error(stored: Value, value: Array, doubts: Callable[[], Array], type_: int) -> float:
    """The largest error of stored values in units in the last place; 0 where all are rounded as well as can be told."""
    with np.errstate(all="ignore"):
        # The short way: casting to float32 or float16 rounds once (to bfloat16 twice), and may overflow.
        short = type_ in (TensorProto.FLOAT, TensorProto.FLOAT16)
        if short and (stored == value.astype(stored.dtype)).all() and np.isfinite(stored).all():
            return 0.0
        held = stored.astype(np.float64)
        error = np.abs(held - value)
        # Below a power of two the units are half as large as above it.
        unit = _ulp(np.minimum(np.abs(held), np.abs(value)), type_)
        good = (error <= 0.5 * unit + doubts()) | (held == value) | (np.isnan(value) & np.isnan(held))
        worst = np.where(np.isfinite(error), error / unit, np.inf)
    return float(np.max(worst, where=~good, initial=0.0))


def compare(stored: Constant, exact: Exact) -> float:
    """The largest error of a stored constant, in units in the last place; infinite where the shapes do not match."""
    stored = in_memory(stored)
    if stored.shape != exact.shape:
        return _compare_shapes(stored, exact)

    def error(span: tuple[int, int]) -> float:
        held, value = _cut(stored.load(), *span), exact.rows(*span)
        return _rounding_error(held, value, partial(exact.doubts, *span, value), stored.type)

    large = math.prod(stored.shape) >= MANY
    return max((in_two if large else map)(error, spans(stored.shape)), default=0.0)


def _compare_shapes(stored: Constant, exact: Exact) -> float:
    """As `compare`, where the shapes differ by ones, or one value is stored for many that are equal."""
    held, value = stored.load(), exact.value
    doubt = exact.doubts(0, len(value) if value.ndim else 1, value)
    fit = fitted(value, held.shape)
    if fit is not None:
        return _rounding_error(held, fit, lambda: doubt.reshape(held.shape), stored.type)
    lifted = (1,) * (value.ndim - held.ndim) + held.shape
    if len(lifted) != value.ndim or any(n not in (1, size) for n, size in zip(lifted, value.shape, strict=True)):
        return float("inf")
    return _rounding_error(np.broadcast_to(held.reshape(lifted), value.shape), value, lambda: doubt, stored.type)


def fitted(value: Array, shape: tuple[int, ...]) -> Array | None:
    """The value in another shape, where the two differ only by axes of size one."""
    same = [n for n in value.shape if n != 1] == [n for n in shape if n != 1]
    return value.reshape(shape) if same else None


def alike(array: Array, axes: Iterable[int]) -> Array:
    """An array with one element along those of these axes on which it does not vary."""
    for axis in axes:
        if array.shape[axis] > 1:
            first = array.take([0], axis)
            array = first if np.array_equal(np.broadcast_to(first, array.shape), array) else array
    return array


def once(value: Array, bound: Array) -> tuple[Array, Array]:
    """The value with one element along each axis on which it does not vary, and the largest bound of each."""
    short = alike(value, range(value.ndim))
    gone = tuple(axis for axis, n in enumerate(short.shape) if n < value.shape[axis])
    return short, np.broadcast_to(bound, value.shape).max(axis=gone, keepdims=True)
