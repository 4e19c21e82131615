"""Linear maps of one tensor, and how they are scaled, added and put one behind the other.

A map is either a scale and shift for each channel, or a convolution (a matrix product is one without spatial axes).
Kernels are float64, made row by row and only when they are written: weights are not read to decide on a merge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from bnfold.affine import Array
from bnfold.graph import Dim
from bnfold.rules.base import MOST_VALUES
from bnfold.windows import Axis


class ObstacleError(Exception):
    """Why linear maps do not become one; the message is one clause. `unrelated` where nobody would expect them to."""

    def __init__(self, text: str, unrelated: bool = False) -> None:
        super().__init__(text)
        self.unrelated = unrelated


@dataclass(frozen=True, eq=False)
class Diagonal:
    """y[c] = scale[c] * x[c] + shift[c]."""

    scale: Array
    shift: Array

    @staticmethod
    def identity(channels: int) -> Diagonal:
        """y = x."""
        return Diagonal(np.ones(channels), np.zeros(channels))


MOST_PARTS = 1 << 12
"""Kernels that one may be made of: one that is read twice counts twice, and where branches split and meet again and
again that grows without bound."""

PAIRS = 512
"""Pairs of taps of one kernel behind another that count as much as a kernel."""

MOST_TIMES = 16
"""Times that many weights may become more, with zeros in between, where groups become one."""

SPAN = 4096
"""Rows that are made at once, where they are of several groups."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """y = K * x + bias, in groups, with zeros around x."""

    inputs: int
    outputs: int
    group: int
    axes: tuple[Axis, ...]
    """One for each spatial axis; none for a matrix product."""
    rows: Callable[[int, int], Array]
    """K from one output channel to another: shape (outputs, inputs / group, *taps)."""
    bias: Callable[[], Array] | None = None
    """Shape (outputs,); None where there is none."""
    parts: int = 1
    """Kernels of nodes that are read to make the rows."""
    shifts: int = 0
    """Kernels and biases of nodes that are read to make the bias."""

    def __post_init__(self) -> None:
        if self.parts + self.shifts > MOST_PARTS:
            raise ObstacleError("its branches split and meet again too often", unrelated=True)

    @property
    def taps(self) -> tuple[int, ...]:
        """The kernel's size along each spatial axis."""
        return tuple(axis.taps for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of K."""
        return (self.outputs, self.inputs // self.group, *self.taps)

    @property
    def products(self) -> int:
        """Multiplications for one output position, all channels."""
        return math.prod(self.shape)


Term = Diagonal | Kernel


def scaled(term: Term, scale: Array, shift: Array) -> Term:
    """``scale * term + shift``, both of shape (outputs,)."""
    if isinstance(term, Diagonal):
        return Diagonal(scale * term.scale, scale * term.shift + shift)

    def rows(start: int, stop: int) -> Array:
        found = term.rows(start, stop)
        return found * scale[start:stop].reshape(-1, *(1,) * (found.ndim - 1))

    bias = term.bias
    if bias is None and not np.any(shift):
        return replace(term, rows=rows)
    moved = (lambda: shift) if bias is None else (lambda: scale * bias() + shift)
    return replace(term, rows=rows, bias=moved)


def added(one: Term, other: Term, sizes: Sequence[Dim]) -> Term:
    """``one + other``; `sizes` are those of x along the spatial axes.

    Raises:
        ObstacleError: their outputs do not meet, or no window holds both.
    """
    if isinstance(one, Diagonal) and isinstance(other, Diagonal):
        return Diagonal(one.scale + other.scale, one.shift + other.shift)
    one, other = (_as_kernel(term, len(sizes)) for term in (one, other))
    if (one.inputs, one.outputs) != (other.inputs, other.outputs):
        raise ObstacleError("the branches have different numbers of channels")
    axes = tuple(_around(a, b, size) for a, b, size in zip(one.axes, other.axes, sizes, strict=True))
    group = math.gcd(one.group, other.group)
    _may_widen((one, other), group)

    def rows(start: int, stop: int) -> Array:
        return _laid(one, start, stop, group, axes) + _laid(other, start, stop, group, axes)

    biases = [term.bias for term in (one, other) if term.bias is not None]
    bias = (lambda: np.sum([make() for make in biases], axis=0)) if biases else None
    return Kernel(one.inputs, one.outputs, group, axes, rows, bias, one.parts + other.parts, one.shifts + other.shifts)


def stacked(terms: Sequence[Term], sizes: Sequence[Dim]) -> Kernel:
    """The outputs of all, one behind the other; `sizes` are those of x along the spatial axes.

    Raises:
        ObstacleError: their outputs do not meet, or no window holds all.
    """
    kernels = [_as_kernel(term, len(sizes)) for term in terms]
    axes = kernels[0].axes
    for kernel in kernels[1:]:
        axes = tuple(_around(a, b, size) for a, b, size in zip(axes, kernel.axes, sizes, strict=True))
    _may_widen(kernels, 1)
    ends = list(accumulate(kernel.outputs for kernel in kernels))

    def rows(start: int, stop: int) -> Array:
        parts = []
        for kernel, end in zip(kernels, ends, strict=True):
            first = end - kernel.outputs
            low, high = max(start, first), min(stop, end)
            if low < high:
                parts.append(_laid(kernel, low - first, high - first, 1, axes))
        return np.concatenate(parts) if parts else np.zeros((0, kernels[0].inputs, *(axis.taps for axis in axes)))

    def bias() -> Array:
        return np.concatenate(
            [np.zeros(kernel.outputs) if kernel.bias is None else kernel.bias() for kernel in kernels]
        )

    biased = any(kernel.bias is not None for kernel in kernels)
    parts, shifts = sum(kernel.parts for kernel in kernels), sum(kernel.shifts for kernel in kernels)
    return Kernel(kernels[0].inputs, ends[-1], 1, axes, rows, bias if biased else None, parts, shifts)


def _laid(term: Kernel, start: int, stop: int, group: int, axes: Sequence[Axis]) -> Array:
    """Rows of a kernel in fewer groups and a larger window."""
    found: Array = np.zeros((stop - start, term.inputs // group, *(axis.taps for axis in axes)))
    at = tuple(
        slice(first := (new.begin - own.begin) // new.dilation, first + own.reach // new.dilation + 1, step)
        for own, new in zip(term.axes, axes, strict=True)
        for step in [own.dilation // new.dilation if own.taps > 1 else 1]
    )
    found[:, :, *at] = _widened(term, start, stop, group)
    return found


def _as_kernel(term: Term, rank: int) -> Kernel:
    if isinstance(term, Kernel):
        return term
    scale, shift = term.scale, term.shift
    bias = (lambda: shift) if np.any(shift) else None
    ones = (1,) * (rank + 1)
    return Kernel(
        len(scale),
        len(scale),
        len(scale),
        (Axis(1),) * rank,
        lambda start, stop: scale[start:stop].reshape(-1, *ones),
        bias,
    )


def _around(one: Axis, other: Axis, size: Dim) -> Axis:
    """The window that holds both."""
    if one.stride != other.stride:
        raise ObstacleError("the branches have different strides")
    begin, last = max(one.begin, other.begin), max(one.reach - one.begin, other.reach - other.begin)
    steps = [axis.dilation for axis in (one, other) if axis.taps > 1]
    dilation = math.gcd(*steps, *(begin - axis.begin for axis in (one, other))) or 1
    return _closed(Axis((begin + last) // dilation + 1, one.stride, dilation, begin), [one, other], size)


def _closed(axis: Axis, like: Sequence[Axis], size: Dim) -> Axis:
    """The axis with as many zeros at its end as give the outputs of the others."""
    if isinstance(size, int):
        outputs = {other.outputs(size) for other in like}
        end = (max(outputs) - 1) * axis.stride + axis.reach + 1 - axis.begin - size
    else:
        outputs = {other.growth for other in like}
        end = max(outputs) + axis.reach - axis.begin
    found = _even(replace(axis, end=max(0, end)), size)
    made = found.outputs(size) if isinstance(size, int) else found.growth
    if outputs != {made}:
        raise ObstacleError("the branches have outputs of different sizes")
    return found


def _even(axis: Axis, size: Dim) -> Axis:
    """As many zeros behind as in front, where that makes no more outputs: runtimes are quicker then (FastViT: 1.08)."""
    even = replace(axis, end=axis.begin)
    same = isinstance(size, int) and even.end > axis.end and even.outputs(size) == axis.outputs(size)
    return even if same else axis


def _may_widen(terms: Sequence[Kernel], group: int) -> None:
    """Refuses where few weights of many groups would become very many.

    Raises:
        ObstacleError: they would.
    """
    most = max(term.products * (term.group // group) for term in terms)
    if most > max(MOST_VALUES, MOST_TIMES * sum(term.products for term in terms)):
        raise ObstacleError("kernels of many groups would become many times as large", unrelated=True)


def _widened(term: Kernel, start: int, stop: int, group: int) -> Array:
    """Rows of a kernel in fewer groups: each group's inputs hold those of several, and zeros for the others."""
    rows = term.rows(start, stop)
    if term.group == group:
        return rows
    narrow, each = term.inputs // term.group, term.group // group
    found: Array = np.zeros((stop - start, term.inputs // group, *term.taps))
    own = np.arange(start, stop) // (term.outputs // term.group)
    at = (own % each)[:, None] * narrow + np.arange(narrow)
    found[np.arange(stop - start)[:, None], at] = rows
    return found


def chained(outer: Kernel, inner: Term, sizes: Sequence[Dim]) -> Kernel:
    """``outer(inner(x))``; `sizes` are those of x along the spatial axes.

    Raises:
        ObstacleError: zeros that the outer one pads with are none that the inner one makes, or sizes are not known.
    """
    if isinstance(inner, Diagonal):
        return _behind_scale(outer, inner, sizes)
    axes = tuple(_through(a, b, size) for a, b, size in zip(outer.axes, inner.axes, sizes, strict=True))
    if inner.bias is not None and _pads(outer, inner_sizes(inner, sizes)):
        raise ObstacleError("the second pads with zeros what the first shifts")
    group = math.gcd(outer.group, inner.group)
    _may_widen((outer, inner), group)
    per_group, middle = outer.outputs // group, inner.outputs // group

    def rows(start: int, stop: int) -> Array:
        found: Array = np.zeros((stop - start, inner.inputs // group, *(axis.taps for axis in axes)))
        for low, high in _spans(start, stop, per_group):
            first, last = low // per_group, -(-high // per_group)
            part = found[low - start : high - start]
            second, made, into = (
                array.reshape(last - first, len(array) // (last - first), *array.shape[1:])
                for array in (
                    _widened(outer, low, high, group),
                    _widened(inner, first * middle, last * middle, group),
                    part,
                )
            )
            for tap in np.ndindex(*outer.taps):
                for tap_before in np.ndindex(*inner.taps):
                    at = tuple(
                        (t * out.dilation * own.stride + u * own.dilation) // new.dilation
                        for t, u, out, own, new in zip(tap, tap_before, outer.axes, inner.axes, axes, strict=True)
                    )
                    into[:, :, :, *at] += second[:, :, :, *tap] @ made[:, :, :, *tap_before]
        return found

    shifts = outer.shifts + inner.shifts
    before, bias, parts = (
        inner.bias,
        outer.bias,
        outer.parts + inner.parts + math.prod(outer.taps) * math.prod(inner.taps) // PAIRS,
    )
    if before is not None:
        after = outer.bias
        bias, shifts = lambda: _passed(outer, before(), after), shifts + outer.parts
    return Kernel(inner.inputs, outer.outputs, group, axes, rows, bias, parts, shifts)


def _spans(start: int, stop: int, each: int) -> Iterator[tuple[int, int]]:
    """Rows in pieces: many whole groups of so many, or some of one group."""
    while start < stop:
        whole = min((stop - start) // each, max(1, SPAN // each))
        end = start + whole * each if whole and start % each == 0 else min(stop, start - start % each + each)
        yield start, end
        start = end


def _behind_scale(outer: Kernel, inner: Diagonal, sizes: Sequence[Dim]) -> Kernel:
    scale, shift, rank = inner.scale, inner.shift, len(sizes)
    if np.any(shift) and _pads(outer, sizes):
        raise ObstacleError("a shift stands in front of a convolution that pads with zeros")

    def rows(start: int, stop: int) -> Array:
        own = _own_inputs(outer, start, stop)
        return outer.rows(start, stop) * scale[own].reshape(*own.shape, *(1,) * rank)

    if np.any(shift):
        return replace(
            outer, rows=rows, bias=lambda: _passed(outer, shift, outer.bias), shifts=outer.shifts + outer.parts
        )
    return replace(outer, rows=rows)


def _own_inputs(term: Kernel, start: int, stop: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """For each row the channels of x that it reads."""
    each = term.inputs // term.group
    group = np.arange(start, stop) // (term.outputs // term.group)
    return group[:, None] * each + np.arange(each)


def _passed(outer: Kernel, shift: Array, bias: Callable[[], Array] | None) -> Array:
    """What a constant input makes where no window touches padding."""
    rows = outer.rows(0, outer.outputs).reshape(outer.outputs, -1, math.prod(outer.taps))
    moved: Array = np.einsum("oit,oi->o", rows, shift[_own_inputs(outer, 0, outer.outputs)])
    return moved if bias is None else moved + bias()


def inner_sizes(inner: Kernel, sizes: Sequence[Dim]) -> list[Dim]:
    """The sizes of the output."""
    return [axis.outputs(size) if isinstance(size, int) else None for axis, size in zip(inner.axes, sizes, strict=True)]


def _pads(term: Kernel, sizes: Sequence[Dim]) -> bool:
    return any(axis.touches_padding(size) for axis, size in zip(term.axes, sizes, strict=True))


def joined_axis(outer: Axis, inner: Axis) -> Axis:
    """The window of one behind the other, but for the zeros at its end."""
    steps = [outer.dilation * inner.stride] * (outer.taps > 1) + [inner.dilation] * (inner.taps > 1)
    dilation = math.gcd(*steps) or 1
    reach = outer.reach * inner.stride + inner.reach
    begin = outer.begin * inner.stride + inner.begin
    return Axis(reach // dilation + 1, outer.stride * inner.stride, dilation, begin)


def _through(outer: Axis, inner: Axis, size: Dim) -> Axis:
    """The window of one behind the other."""
    if outer == Axis(1):
        return inner
    middle = inner.outputs(size) if isinstance(size, int) else None
    if outer.touches_padding(middle) and inner.taps > 1:
        raise ObstacleError("the second pads with zeros where the first would see its input")
    if middle is None and inner.stride > 1:
        raise ObstacleError("the size of the input is not known")
    axis = joined_axis(outer, inner)
    if isinstance(size, int) and middle is not None:
        end = (outer.outputs(middle) - 1) * axis.stride + axis.reach + 1 - axis.begin - size
    else:
        end = outer.growth + inner.growth + axis.reach - axis.begin
    return _even(replace(axis, end=max(0, end)), size)
