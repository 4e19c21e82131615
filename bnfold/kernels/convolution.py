"""Conv and ConvTranspose of any rank, as matrix products."""

from __future__ import annotations

import math

import numpy as np

from bnfold.kernels.base import Array, Call, ints, kernel
from bnfold.kernels.windows import Window, auto_pad, window

# The unfolded input of one product is kept near this size, so that it stays in the processor's cache.
_CHUNK_BYTES = 8 << 20


@kernel("Conv")
def conv(call: Call, x: Array, w: Array, b: Array | None = None) -> Array:
    """y[n, m, p] = sum over c, k of w[m, c, k] * x[n, g*C + c, p*stride + k*dilation - pad] + b[m]."""
    group = int(call.get("group", 1))
    win = window(call, x.shape[2:], w.shape[2:])
    padded = win.pad(x, 0)
    if math.prod(w.shape[2:]) == 1:
        y = _pointwise(win.tap(padded, (0,) * len(win.kernel)), w, group)
    elif w.shape[1] == 1 and group > 1:
        y = _depthwise(win, padded, w, group)
    else:
        y = _general(win, padded, w, group)
    if b is not None:
        y += b.reshape((1, -1) + (1,) * len(win.out))
    return y


def _pointwise(x: Array, w: Array, group: int) -> Array:
    n, c, *out = x.shape
    columns = np.ascontiguousarray(x).reshape(n, group, c // group, -1)
    weights = w.reshape(group, w.shape[0] // group, w.shape[1])
    y: Array = np.matmul(weights, columns)
    return y.reshape(n, w.shape[0], *out)


def _depthwise(win: Window, padded: Array, w: Array, group: int) -> Array:
    n, multiple = padded.shape[0], w.shape[0] // group
    y = np.zeros((n, group, multiple, *win.out))
    ones = (1,) * len(win.out)
    for tap in win.taps:
        weight = w[(slice(None), 0) + tap].reshape(group, multiple, *ones)
        seen = win.tap(padded, tap)
        y += seen[:, :, np.newaxis] * weight
    return y.reshape(n, w.shape[0], *win.out)


def _general(win: Window, padded: Array, w: Array, group: int) -> Array:
    """Unfold a few output rows at a time and multiply."""
    n, c = padded.shape[:2]
    per_group, taps = c // group, len(win.taps)
    weights = w.reshape(group, w.shape[0] // group, per_group * taps)
    y = np.empty((n, w.shape[0], *win.out))
    row_bytes = 8 * c * taps * math.prod(win.out[1:])
    rows = max(1, _CHUNK_BYTES // max(1, row_bytes))
    for image in range(n):
        for first in range(0, win.out[0], rows):
            count = min(rows, win.out[0] - first)
            columns = np.empty((c, taps, count, *win.out[1:]))
            for index, tap in enumerate(win.taps):
                columns[:, index] = win.tap(padded[image], tap)[:, first : first + count]
            product = np.matmul(weights, columns.reshape(group, per_group * taps, -1))
            y[image, :, first : first + count] = product.reshape(w.shape[0], count, *win.out[1:])
    return y


@kernel("ConvTranspose")
def conv_transpose(call: Call, x: Array, w: Array, b: Array | None = None) -> Array:
    """The gradient of Conv: every input element adds its weighted kernel to the output; w is (C, M/group, kernel)."""
    rank, group = x.ndim - 2, int(call.get("group", 1))
    strides = ints(call.get("strides") or [1] * rank)
    dilations = ints(call.get("dilations") or [1] * rank)
    extra = ints(call.get("output_padding") or [0] * rank)
    shape = call.get("output_shape")
    n, c = x.shape[:2]
    kernel_shape = w.shape[2:]
    reach = [
        (extent - 1) * stride + (size - 1) * dilation + 1
        for extent, stride, size, dilation in zip(x.shape[2:], strides, kernel_shape, dilations, strict=True)
    ]
    begin, out = _transposed_extent(call, x.shape[2:], strides, reach, extra, shape)
    outputs = w.shape[1] * group
    flat = np.ascontiguousarray(x).reshape(n, group, c // group, -1)
    full = np.zeros(
        (n, outputs, *[max(size, first + last) for size, first, last in zip(reach, begin, out, strict=True)])
    )
    for tap in np.ndindex(*kernel_shape):
        weight = w[(slice(None), slice(None)) + tap].reshape(group, c // group, w.shape[1])
        part = np.matmul(weight.transpose(0, 2, 1), flat).reshape(n, outputs, *x.shape[2:])
        place = tuple(
            slice(at * dilation, at * dilation + (extent - 1) * stride + 1, stride)
            for at, dilation, extent, stride in zip(tap, dilations, x.shape[2:], strides, strict=True)
        )
        full[(slice(None), slice(None)) + place] += part
    y = full[(slice(None), slice(None)) + tuple(slice(at, at + size) for at, size in zip(begin, out, strict=True))]
    return y if b is None else y + b.reshape((1, -1) + (1,) * rank)


def _transposed_extent(
    call: Call,
    extents: tuple[int, ...],
    strides: list[int],
    reach: list[int],
    extra: list[int],
    shape: list[int] | None,
) -> tuple[list[int], list[int]]:
    """Where the output begins in the full result, and its size, per axis."""
    rank, mode = len(extents), auto_pad(call)
    pads = ints(call.get("pads") or [0] * 2 * rank)
    if shape is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        shape = [extent * stride for extent, stride in zip(extents, strides, strict=True)]
    begin, out = [], []
    for axis in range(rank):
        full = reach[axis] + extra[axis]
        if shape is None:
            first, last = (0, 0) if mode == "VALID" else (pads[axis], pads[axis + rank])
            size = full - first - last
        else:
            size = ints(shape)[-rank:][axis]
            total = max(0, full - size)
            first = total // 2 if mode == "SAME_UPPER" else total - total // 2
        begin.append(first)
        out.append(size)
    return begin, out
