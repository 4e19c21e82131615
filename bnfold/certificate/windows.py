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
    strides = node.get_ints("strides") or [1] * len(kernel)
    unknown = [axis for axis, extent in enumerate(extents) if not isinstance(extent, int) or extent < 1]
    rounds = min(4, max((strides[axis] for axis in unknown), default=1))
    found = []
    for n in range(rounds):
        sizes = [
            _some_size(node, kernel, axis, n) if axis in unknown or not isinstance(extent, int) else extent
            for axis, extent in enumerate(extents)
        ]
        found.append(tuple(_axis(node, axis, size, kernel) for axis, size in enumerate(sizes)))
    return found


def _some_size(node: Node, kernel: tuple[int, ...], axis: int, n: int) -> int:
    dilation = (node.get_ints("dilations") or [1] * len(kernel))[axis]
    stride = (node.get_ints("strides") or [1] * len(kernel))[axis]
    return (kernel[axis] - 1) * dilation + 1 + 3 * stride + n


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


def _axis(node: Node, axis: int, size: int, kernel: tuple[int, ...]) -> Axis:
    rank = len(kernel)
    pads = node.get_ints("pads") or [0] * (2 * rank)
    shape = node.get_ints("output_shape")
    window = _Window(
        size=size,
        kernel=kernel[axis],
        stride=(node.get_ints("strides") or [1] * rank)[axis],
        dilation=(node.get_ints("dilations") or [1] * rank)[axis],
        mode=node.get_string("auto_pad", "NOTSET"),
        begin=pads[axis],
        end=pads[rank + axis],
        ceil_mode=bool(node.get_int("ceil_mode", 0)),
        output_padding=(node.get_ints("output_padding") or [0] * rank)[axis],
        output_size=shape[-rank:][axis] if shape else None,
    )
    return _spreading(window) if node.op == "ConvTranspose" else _sliding(window)


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
    full = (at.size - 1) * at.stride + (at.kernel - 1) * at.dilation + 1 + at.output_padding
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
    steps = np.arange(outputs)[:, None] + begin - np.arange(at.kernel) * at.dilation
    places = steps // at.stride
    inside = (steps % at.stride == 0) & (places >= 0) & (places < at.size)
    return _thinned(places, inside, np.zeros(outputs, np.int64))


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
    """What every window sees: (N, C, *positions, *taps)."""
    sizes = x.shape[2:]
    bordered = np.full((*x.shape[:2], *(size + 1 for size in sizes)), fill)
    bordered[tuple([slice(size) for size in x.shape])] = x
    seen = bordered.reshape(*x.shape[:2], -1).take(_places(axes, sizes), axis=2)
    return seen.reshape(*x.shape[:2], *(len(axis.taps) for axis in axes), *(axis.taps.shape[1] for axis in axes))


@lru_cache(maxsize=1024)
def _places(axes: tuple[Axis, ...], sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """By window and tap, both flat: a place in a sample that has a border behind each axis."""
    rank, found = len(axes), np.zeros((1,) * (2 * len(axes)), np.int64)
    for number, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        taps = np.where(axis.taps < 0, size, axis.taps)
        shape = [1] * (2 * rank)
        shape[number], shape[rank + number] = taps.shape
        found = found * (size + 1) + taps.reshape(shape)
    return found.reshape(-1)


def convolve(
    x: Array, weight: Array, bias: Array | None, axes: tuple[Axis, ...], group: int, transposed: bool
) -> Array:
    """Conv, with weights (M, C/group, taps); ConvTranspose, with weights (C, M/group, taps)."""
    seen = unfold(x, axes, 0.0)
    batch, channels, rank = x.shape[0], x.shape[1], len(axes)
    positions = seen.shape[2 : 2 + rank]
    taps = math.prod(seen.shape[2 + rank :])
    # Columns (group, channel in group * taps, batch * positions).
    columns = seen.reshape(batch, group, channels // group, math.prod(positions), taps)
    columns = columns.transpose(1, 2, 4, 0, 3).reshape(group, channels // group * taps, -1)
    if transposed:
        rows = (
            weight.reshape(group, channels // group, -1, taps)
            .transpose(0, 2, 1, 3)
            .reshape(group, -1, columns.shape[1])
        )
    else:
        rows = weight.reshape(group, -1, columns.shape[1])
    y = np.matmul(rows, columns).reshape(-1, batch, *positions)
    if bias is not None:
        y = y + bias.reshape(-1, *(1,) * (rank + 1))
    return np.swapaxes(y, 0, 1)


def pool(node: Node, x: Array, axes: tuple[Axis, ...]) -> list[Array]:
    """MaxPool (with the winning tap for Indices), AveragePool, LpPool."""
    rank = len(axes)
    over = tuple(range(2 + rank, 2 + 2 * rank))
    if node.op == "MaxPool":
        seen = unfold(x, axes, -np.inf)
        flat = seen.reshape(*seen.shape[: 2 + rank], -1)
        return [flat.max(-1), flat.argmax(-1).astype(np.float64)]
    if node.op == "LpPool":
        p = node.get_int("p", 2) if node.version > 1 else node.get_float("p", 2.0)
        return [(np.abs(unfold(x, axes, 0.0)) ** p).sum(over) ** (1 / p)]
    counts = np.ones((1,) * rank)
    for number, axis in enumerate(axes):
        inside = axis.counted if node.get_int("count_include_pad", 0) else (axis.taps >= 0).sum(axis=1)
        counts = counts * inside.reshape([-1 if at == number else 1 for at in range(rank)])
    return [unfold(x, axes, 0.0).sum(over) / counts]
