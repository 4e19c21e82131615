"""Sliding windows: output sizes, automatic padding, and the strided view of one kernel tap."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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

    def touching(self, extents: tuple[int, ...]) -> Window:
        """These windows without outer taps that never reach into `extents`; `begin` may become negative."""
        kernel, begin = [], []
        for axis, extent in enumerate(extents):
            before, dilation = self.begin[axis], self.dilations[axis]
            last = min(self.kernel[axis] - 1, (before + extent - 1) // dilation)
            reached = (self.out[axis] - 1) * self.strides[axis]
            first = max(0, min(last, -((reached - before) // dilation)))
            kernel.append(max(last - first, 0) + 1)
            begin.append(before - first * dilation)
        return replace(self, kernel=tuple(kernel), begin=tuple(begin))

    def pad(self, x: Array, value: float | int) -> Array:
        """`x` with its spatial axes padded, or cut where `begin` is negative, so that every window lies inside."""
        before = len(x.shape) - len(self.kernel)
        needed = [
            max(0, (out - 1) * stride + (size - 1) * dilation + 1 - begin - extent)
            for out, stride, size, dilation, begin, extent in zip(
                self.out, self.strides, self.kernel, self.dilations, self.begin, x.shape[before:], strict=True
            )
        ]
        if not any(self.begin) and not any(needed):
            return x
        inside = x[(...,) + tuple(slice(max(0, -begin), None) for begin in self.begin)]
        widths = [(0, 0)] * before + [(max(0, begin), more) for begin, more in zip(self.begin, needed, strict=True)]
        return np.pad(inside, widths, constant_values=value)

    def reduce(self, x: Array, value: float | int, combine: np.ufunc) -> Array:
        """Every window combined to one element, axis by axis, with `value` in the padding: the output's shape."""
        win = self.touching(x.shape[len(x.shape) - len(self.kernel) :])
        y = win.pad(x, value)
        for axis, (size, out, stride, dilation) in enumerate(
            zip(win.kernel, win.out, win.strides, win.dilations, strict=True), len(x.shape) - len(win.kernel)
        ):
            along = (slice(None),) * axis
            seen = [y[along + (slice(at, at + out * stride, stride),)] for at in range(0, size * dilation, dilation)]
            y = combine(seen[0], value)
            for more in seen[1:]:
                combine(y, more, out=y)
        return y

    def tap(self, padded: Array, tap: tuple[int, ...]) -> Array:
        """What every window sees at one kernel position: a view of `padded`, shaped like the output."""
        spatial = tuple(
            slice(at * dilation, at * dilation + out * stride, stride)
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
        if size < 0:
            raise ValueError(f"a window of {reach} does not fit into the {extent + first + last} of axis {axis + 2}")
        begin.append(first)
        end.append(last)
        out.append(size)
    return Window(kernel, tuple(strides), tuple(dilations), tuple(begin), tuple(end), tuple(out))


def auto_pad(call: Call) -> str:
    """The padding mode, NOTSET where the attribute is absent or empty."""
    return str(call.get("auto_pad") or "NOTSET")
