"""Convolutions and pools at a few places: one output position for every way in which a window overlaps the padding.

The geometry is the true one (sizes, pads, strides, dilations); only the positions are few. Along each spatial axis a
table says which input element each kernel tap sees, and the sample holds just the elements that some tap sees.

Source: ONNX operators Conv, ConvTranspose, MaxPool, AveragePool, LpPool, all versions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Array
from bnfold.certificate.result import NotCertifiedError
from bnfold.graph import Dim, Node

POSITIONS = 5
"""Output positions along one axis, at most: the first two patterns, the last two, and one between."""


@dataclass(frozen=True, eq=False)
class Axis:
    """One spatial axis of a sample."""

    taps: NDArray[np.int64]
    """By output position and kernel tap: a place in the sample, or -1 for padding."""
    counted: NDArray[np.int64]
    """By output position: how many taps lie in the input or its padding (not beyond both)."""
    positions: NDArray[np.int64]
    """Which outputs these are."""
    elements: NDArray[np.int64]
    """Which elements of the input the sample holds."""

    @property
    def size(self) -> int:
        """Elements of the sample: one at least, though no tap may see it."""
        return max(1, len(self.elements))


def samples(node: Node, extents: Sequence[Dim], kernel: tuple[int, ...]) -> list[tuple[Axis, ...]]:
    """The axes of each sample: one where all sizes are known, else one for each remainder of the stride."""
    known = tuple(extent if isinstance(extent, int) and extent > 0 else 0 for extent in extents)
    return _samples(_geometry(node, len(kernel)), known, kernel)


@dataclass(frozen=True)
class _Geometry:
    """What places the windows of a node."""

    transposed: bool
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    mode: str
    ceil_mode: bool
    output_padding: tuple[int, ...]
    output_shape: tuple[int, ...] | None


def _geometry(node: Node, rank: int) -> _Geometry:
    def ints(name: str, default: int, count: int = rank) -> tuple[int, ...]:
        return tuple(node.get_ints(name) or (default,) * count)

    return _Geometry(
        node.op == "ConvTranspose",
        ints("strides", 1),
        ints("pads", 0, 2 * rank),
        ints("dilations", 1),
        node.get_string("auto_pad", "NOTSET"),
        bool(node.get_int("ceil_mode", 0)),
        ints("output_padding", 0),
        tuple(node.get_ints("output_shape") or ()) or None,
    )


@lru_cache(maxsize=1024)
def _samples(at: _Geometry, extents: tuple[int, ...], kernel: tuple[int, ...]) -> list[tuple[Axis, ...]]:
    """The same for all nodes that are alike; 0 is an extent that is not known."""
    unknown = [axis for axis, extent in enumerate(extents) if not extent]
    rounds = min(4, max((at.strides[axis] for axis in unknown), default=1))
    found = []
    for n in range(rounds):
        sizes = [extent or _some_size(at, kernel, axis, n) for axis, extent in enumerate(extents)]
        found.append(tuple(_axis(at, axis, size, kernel) for axis, size in enumerate(sizes)))
    return found


def _some_size(at: _Geometry, kernel: tuple[int, ...], axis: int, n: int) -> int:
    return (kernel[axis] - 1) * at.dilations[axis] + 1 + 3 * at.strides[axis] + n


@dataclass(frozen=True)
class _Window:
    """A window along one axis, and the attributes that place it."""

    size: int
    kernel: int
    stride: int
    dilation: int
    mode: str
    begin: int
    end: int
    ceil_mode: bool
    output_padding: int
    output_size: int | None


def _axis(at: _Geometry, axis: int, size: int, kernel: tuple[int, ...]) -> Axis:
    rank = len(kernel)
    window = _Window(
        size=size,
        kernel=kernel[axis],
        stride=at.strides[axis],
        dilation=at.dilations[axis],
        mode=at.mode,
        begin=at.pads[axis],
        end=at.pads[rank + axis],
        ceil_mode=at.ceil_mode,
        output_padding=at.output_padding[axis],
        output_size=at.output_shape[-rank:][axis] if at.output_shape else None,
    )
    return _spreading(window) if at.transposed else _sliding(window)


LONG = 1 << 12
"""Axes that are longer by more than two windows are looked at as if they were not."""


@lru_cache(maxsize=1024)
def _sliding(at: _Window) -> Axis:
    """Window o sees element o*stride + tap*dilation - begin."""
    stride, begin, end = at.stride, at.begin, at.end
    reach = (at.kernel - 1) * at.dilation + 1
    # What the borders see does not depend on how often the middle repeats.
    enough = LONG + 2 * reach
    size = at.size if at.size <= enough + stride else enough + (at.size - enough) % stride
    if at.mode in ("SAME_UPPER", "SAME_LOWER"):
        outputs = -(-size // stride)
        total = max(0, (outputs - 1) * stride + reach - size)
        begin = total // 2 if at.mode == "SAME_UPPER" else total - total // 2
        end = total - begin
    else:
        begin, end = (0, 0) if at.mode == "VALID" else (begin, end)
        room = size + begin + end - reach
        outputs = (-(-room // stride) if at.ceil_mode else room // stride) + 1
        # A last window that would begin behind the input, in its padding, is left out.
        if at.ceil_mode and (outputs - 1) * stride >= size + begin:
            outputs -= 1
    if outputs < 1:
        raise NotCertifiedError(f"a window of {reach} does not fit an axis of {size}")
    if outputs * at.kernel > 1 << 24:
        raise NotCertifiedError(f"its padding of {begin} and {end} makes {outputs} windows of an axis of {size}")
    places = np.arange(outputs)[:, None] * stride + np.arange(at.kernel) * at.dilation - begin
    found = _thinned(places, (places >= 0) & (places < size), (places < size + end).sum(axis=1))
    left_out = at.size - size
    positions = found.positions + (found.positions > outputs // 2) * (left_out // stride)
    return replace(found, positions=positions, elements=found.elements + (found.elements > size // 2) * left_out)


@lru_cache(maxsize=1024)
def _spreading(at: _Window) -> Axis:
    """Output o hears from input i through tap t where i*stride + t*dilation - begin = o."""
    begin, end, wanted = at.begin, at.end, at.output_size
    reach = (at.kernel - 1) * at.dilation + 1
    full = (at.size - 1) * at.stride + reach + at.output_padding
    if wanted is None and at.mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = at.size * at.stride
    if wanted is not None:
        total = max(0, full - wanted)
        begin = total // 2 if at.mode == "SAME_UPPER" else total - total // 2
        outputs = wanted
    else:
        begin, end = (0, 0) if at.mode == "VALID" else (begin, end)
        outputs = full - begin - end
    if outputs < 1:
        raise NotCertifiedError(f"an axis of {at.size} has no output")
    outputs = min(outputs, max(1, full - begin + 1))  # those behind hear nothing, as the first of them
    # Between the first that all taps reach and the last one, all is the same again after a stride.
    first, behind = max(0, reach - 1 - begin), min(outputs, (at.size - 1) * at.stride - begin + 1)
    left_out = max(0, behind - first - LONG - 2 * (reach + at.stride)) // at.stride
    size, outputs = at.size - left_out, outputs - left_out * at.stride
    middle = first + (behind - first - left_out * at.stride) // 2
    if outputs * at.kernel > 1 << 24:
        raise NotCertifiedError(f"a window of {at.kernel} makes {outputs} different places of an axis of {at.size}")
    steps = np.arange(outputs)[:, None] + begin - np.arange(at.kernel) * at.dilation
    places = steps // at.stride
    inside = (steps % at.stride == 0) & (places >= 0) & (places < size)
    found = _thinned(places, inside, np.zeros(outputs, np.int64))
    positions = found.positions + (found.positions > middle) * left_out * at.stride
    elements = found.elements + (found.elements > (middle + begin) // at.stride) * left_out
    return replace(found, positions=positions, elements=elements)


def _thinned(places: NDArray[Any], inside: NDArray[np.bool_], counted: NDArray[Any]) -> Axis:
    """Keep one position for each pattern of taps inside, and the input elements that they see."""
    patterns = np.concatenate([inside, counted[:, None]], axis=1)
    chosen = np.sort(np.unique(patterns, axis=0, return_index=True)[1])
    if len(chosen) > POSITIONS:
        chosen = chosen[[0, 1, len(chosen) // 2, -2, -1]]
    places, inside = places[chosen], inside[chosen]
    seen = np.unique(places[inside])
    taps = np.where(inside, np.searchsorted(seen, places), -1)
    return Axis(taps, counted[chosen], chosen, seen)


def unfold(x: Array, axes: tuple[Axis, ...], fill: float) -> Array:
    """What every window sees: (N, C, taps, positions), these two flat."""
    sizes = x.shape[2:]
    bordered = np.full((*x.shape[:2], *(size + 1 for size in sizes)), fill)
    bordered[tuple([slice(size) for size in x.shape])] = x
    return bordered.reshape(*x.shape[:2], -1).take(_places(axes, sizes), axis=2)


@lru_cache(maxsize=1024)
def _places(axes: tuple[Axis, ...], sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """By tap and window, both flat: a place in a sample that has a border behind each axis."""
    rank, found = len(axes), np.zeros((1,) * (2 * len(axes)), np.int64)
    for number, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        taps = np.where(axis.taps < 0, size, axis.taps).T
        shape = [1] * (2 * rank)
        shape[number], shape[rank + number] = taps.shape
        found = found * (size + 1) + taps.reshape(shape)
    return found.reshape(math.prod(axis.taps.shape[1] for axis in axes), -1)


def positions(axes: tuple[Axis, ...]) -> tuple[int, ...]:
    """How many windows there are along each axis."""
    return tuple(len(axis.taps) for axis in axes)


def convolve(
    seen: Array, weight: Array, bias: Array | None, axes: tuple[Axis, ...], group: int, transposed: bool
) -> Array:
    """Conv, with weights (M, C/group, taps); ConvTranspose, with weights (C, M/group, taps); of what windows see."""
    batch, channels, taps, count = seen.shape
    columns = seen.reshape(batch, group, channels // group * taps, count)
    if transposed:
        weight = weight.reshape(group, channels // group, -1, taps).transpose(0, 2, 1, 3)
    y: Array = np.matmul(weight.reshape(group, -1, columns.shape[2]), columns).reshape(batch, -1, *positions(axes))
    return y if bias is None else y + bias.reshape(-1, *(1,) * len(axes))


def pool(node: Node, x: Array, axes: tuple[Axis, ...]) -> list[Array]:
    """MaxPool (with the winning tap for Indices), AveragePool, LpPool."""
    shape = (*x.shape[:2], *positions(axes))
    seen = unfold(x, axes, -np.inf if node.op == "MaxPool" else 0.0)
    if node.op == "MaxPool":
        return [seen.max(2).reshape(shape), seen.argmax(2).astype(np.float64).reshape(shape)]
    if node.op == "LpPool":
        p = node.get_int("p", 2) if node.version > 1 else node.get_float("p", 2.0)
        return [((np.abs(seen) ** p).sum(2) ** (1 / p)).reshape(shape)]
    rank, counts = len(axes), np.ones((1,) * len(axes))
    for number, axis in enumerate(axes):
        inside = axis.counted if node.get_int("count_include_pad", 0) else (axis.taps >= 0).sum(axis=1)
        counts = counts * inside.reshape([-1 if at == number else 1 for at in range(rank)])
    return [seen.sum(2).reshape(shape) / counts]
