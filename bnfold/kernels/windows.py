"""Sliding windows: output sizes, automatic padding, and the strided view of one kernel tap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bnfold.kernels.base import Array, Call, ints


@dataclass(frozen=True)
class Window:
    """A window that slides over the spatial axes; every field has one entry per axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def taps(self) -> list[tuple[int, ...]]:
        """Every position inside the kernel, in row-major order."""
        return [tuple(map(int, tap)) for tap in np.ndindex(*self.kernel)]

    def pad(self, x: Array, value: float | int) -> Array:
        """`x` with its spatial axes padded so that every window lies inside."""
        before = len(x.shape) - len(self.kernel)
        needed = [
            max(0, (out - 1) * stride + (size - 1) * dilation + 1 - begin - extent)
            for out, stride, size, dilation, begin, extent in zip(
                self.out, self.strides, self.kernel, self.dilations, self.begin, x.shape[before:], strict=True
            )
        ]
        if not any(self.begin) and not any(needed):
            return x
        widths = [(0, 0)] * before + list(zip(self.begin, needed, strict=True))
        return np.pad(x, widths, constant_values=value)

    def tap(self, padded: Array, tap: tuple[int, ...]) -> Array:
        """What every window sees at one kernel position: a view of `padded`, shaped like the output."""
        spatial = tuple(
            slice(at * dilation, at * dilation + (out - 1) * stride + 1, stride)
            for at, dilation, out, stride in zip(tap, self.dilations, self.out, self.strides, strict=True)
        )
        return padded[(...,) + spatial]


def window(call: Call, extents: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The window of a Conv or pooling node over spatial `extents` (ONNX Conv, AveragePool, MaxPool; all versions)."""
    rank = len(extents)
    strides = ints(call.get("strides") or [1] * rank)
    dilations = ints(call.get("dilations") or [1] * rank)
    pads = ints(call.get("pads") or [0] * 2 * rank)
    mode = auto_pad(call)
    ceil_mode = bool(call.get("ceil_mode", 0))
    begin, end, out = [], [], []
    for axis, extent in enumerate(extents):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            size = -(-extent // strides[axis])
            total = max(0, (size - 1) * strides[axis] + reach - extent)
            smaller, larger = total // 2, total - total // 2
            first, last = (smaller, larger) if mode == "SAME_UPPER" else (larger, smaller)
        else:
            first, last = (0, 0) if mode == "VALID" else (pads[axis], pads[axis + rank])
            steps = (extent + first + last - reach) / strides[axis]
            size = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
            # A last window that would start in the padding behind the input does not count.
            if ceil_mode and (size - 1) * strides[axis] >= extent + first:
                size -= 1
        begin.append(first)
        end.append(last)
        out.append(size)
    return Window(kernel, tuple(strides), tuple(dilations), tuple(begin), tuple(end), tuple(out))


def auto_pad(call: Call) -> str:
    """The padding mode, NOTSET where the attribute is absent or empty."""
    return str(call.get("auto_pad") or "NOTSET")
