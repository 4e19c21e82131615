"""Max, average and Lp pooling, with and without windows."""

from __future__ import annotations

import math

import numpy as np

from bnfold.kernels.base import Array, Call, ints, is_float, kernel
from bnfold.kernels.windows import Window, window


def _pool_window(call: Call, x: Array) -> Window:
    return window(call, x.shape[2:], tuple(ints(call.get("kernel_shape"))))


@kernel("MaxPool")
def max_pool(call: Call, x: Array) -> Array | tuple[Array, Array]:
    """The largest element of each window; padding never wins. Indices count the whole flattened tensor."""
    win = _pool_window(call, x)
    lowest = -np.inf if is_float(x) else np.iinfo(x.dtype).min
    if not call.wants(1):
        return win.reduce(x, lowest, np.maximum)
    win = win.touching(x.shape[2:])
    padded = win.pad(x, lowest)
    y = win.tap(padded, win.taps[0]).copy()
    plane = math.prod(x.shape[2:])
    inside = np.arange(plane).reshape(x.shape[2:], order="F" if call.get("storage_order", 0) else "C")
    offsets = (np.arange(x.shape[0] * x.shape[1]) * plane).reshape(x.shape[:2] + (1,) * len(win.kernel))
    places = win.pad(inside[np.newaxis, np.newaxis] + offsets, -1)
    indices = win.tap(places, win.taps[0]).copy()
    for tap in win.taps[1:]:
        seen, where = win.tap(padded, tap), win.tap(places, tap)
        better = (seen > y) | ((indices < 0) & (where >= 0))
        y, indices = np.where(better, seen, y), np.where(better, where, indices)
    return y, indices.astype(np.int64)


@kernel("AveragePool")
def average_pool(call: Call, x: Array) -> Array:
    """The mean of each window, over its elements inside the input or, where asked, inside its padding too."""
    win = _pool_window(call, x)
    return win.reduce(x, 0.0, np.add) / _counts(call, win, x.shape[2:])


def _counts(call: Call, win: Window, extents: tuple[int, ...]) -> Array:
    """How many elements each window averages over: per axis, then multiplied."""
    padding_counts = bool(call.get("count_include_pad", 0))
    counts = np.ones((1,) * len(extents))
    for axis, extent in enumerate(extents):
        low = -win.begin[axis] if padding_counts else 0
        high = extent + win.end[axis] if padding_counts else extent
        starts = np.arange(win.out[axis]) * win.strides[axis] - win.begin[axis]
        first, behind = (_taps_before(bound - starts, win, axis) for bound in (low, high))
        number = behind - first
        counts = counts * number.reshape([-1 if at == axis else 1 for at in range(len(extents))])
    return counts


def _taps_before(distances: Array, win: Window, axis: int) -> Array:
    """How many taps of windows lie before a place that is so far from their start."""
    taps: Array = np.clip(-(-distances // win.dilations[axis]), 0, win.kernel[axis])
    return taps


@kernel("LpPool")
def lp_pool(call: Call, x: Array) -> Array:
    """(sum of abs(x)^p)^(1/p) over each window."""
    win, p = _pool_window(call, x), float(call.get("p", 2))
    total = win.reduce(np.abs(x) ** p, 0.0, np.add)
    root: Array = total ** (1 / p)
    return root


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@kernel("GlobalAveragePool")
def global_average_pool(call: Call, x: Array) -> Array:
    """The mean over all spatial axes, kept as ones."""
    y: Array = x.mean(axis=_spatial(x), keepdims=True)
    return y


@kernel("GlobalMaxPool")
def global_max_pool(call: Call, x: Array) -> Array:
    """The largest over all spatial axes, kept as ones."""
    y: Array = x.max(axis=_spatial(x), keepdims=True)
    return y


@kernel("GlobalLpPool")
def global_lp_pool(call: Call, x: Array) -> Array:
    """(sum of abs(x)^p)^(1/p) over all spatial axes, kept as ones."""
    p = float(call.get("p", 2))
    y: Array = (np.abs(x) ** p).sum(axis=_spatial(x), keepdims=True) ** (1 / p)
    return y
