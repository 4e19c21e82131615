"""Resize and Upsample: along each axis a weighted sum of a few input elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnfold.kernels.base import Array, Call, ints, kernel

Plan = dict[int, tuple[float, int]]
"""By axis: the scale, and the size of the output."""


@kernel("Upsample")
def upsample(call: Call, x: Array, scales: Array | None = None) -> Array:
    """Resize with the coordinate out / scale and, for nearest, its floor (opset 1 to 9)."""
    return _resized(x, *_upsampled(call, x, scales))


def elements(call: Call, x: Array | None, *arguments: Array | None) -> int:
    """How many a Resize or Upsample would make: its scales may be anything."""
    assert x is not None
    plan, _ = (_upsampled if call.op == "Upsample" else _planned)(call, x, *arguments)
    return math.prod(plan[axis][1] if axis in plan else size for axis, size in enumerate(x.shape))


def _upsampled(call: Call, x: Array, scales: Array | None = None) -> tuple[Plan, Rule]:
    if call.version == 1:
        factors = [1.0, 1.0, float(call.get("height_scale")), float(call.get("width_scale"))]
    else:
        factors = [float(value) for value in np.ravel(call.get("scales") if scales is None else scales)]
    mode = str(call.get("mode", "nearest"))
    rule = Rule("linear" if mode in ("bilinear", "linear") else "nearest", "asymmetric", "floor")
    return {axis: (factor, _size(x, axis, factor)) for axis, factor in enumerate(factors)}, rule


class Rule:
    """How one output place maps to input places (the attributes of Resize)."""

    def __init__(self, mode: str, coordinates: str, nearest: str = "round_prefer_floor") -> None:
        self.mode, self.coordinates, self.nearest = mode, coordinates, nearest
        self.cubic = -0.75
        self.antialias = self.exclude_outside = False
        self.extrapolation = 0.0
        self.roi: dict[int, tuple[float, float]] = {}


def _size(x: Array, axis: int, factor: float) -> int:
    # ONNX Runtime and the models count in float32: 5 * 1.2 must give 6, as it does there.
    return math.floor(float(np.float32(x.shape[axis]) * np.float32(factor)))


@kernel("Resize")
def resize(call: Call, x: Array, *arguments: Array | None) -> Array:
    """Interpolate to new sizes (opset 10: scales, asymmetric; from 11: roi, scales, sizes and many modes)."""
    return _resized(x, *_planned(call, x, *arguments))


def _planned(call: Call, x: Array, *arguments: Array | None) -> tuple[Plan, Rule]:
    mode = str(call.get("mode", "nearest"))
    if call.version == 10:
        assert arguments[0] is not None
        factors = [float(value) for value in arguments[0].ravel()]
        plan = {axis: (factor, _size(x, axis, factor)) for axis, factor in enumerate(factors)}
        return plan, Rule(mode, "asymmetric", "floor")
    roi, scales, sizes = [*arguments, None, None, None][:3]
    rule = Rule(
        mode,
        str(call.get("coordinate_transformation_mode", "half_pixel")),
        str(call.get("nearest_mode", "round_prefer_floor")),
    )
    rule.cubic = float(call.get("cubic_coeff_a", -0.75))
    rule.antialias, rule.exclude_outside = bool(call.get("antialias", 0)), bool(call.get("exclude_outside", 0))
    rule.extrapolation = float(call.get("extrapolation_value", 0.0))
    axes = [axis % x.ndim for axis in ints(call.attributes.get("axes") or range(x.ndim))]
    if rule.coordinates == "tf_crop_and_resize":
        assert roi is not None
        corners = [float(value) for value in roi.ravel()]
        rule.roi = {axis: (corners[at], corners[at + len(axes)]) for at, axis in enumerate(axes)}
    return _plan(call, x, axes, scales, sizes), rule


def _plan(call: Call, x: Array, axes: list[int], scales: Array | None, sizes: Array | None) -> Plan:
    """The scale and the output size of each axis."""
    if scales is not None and scales.size:
        factors = [float(value) for value in scales.ravel()]
        return {axis: (factor, _size(x, axis, factor)) for axis, factor in zip(axes, factors, strict=True)}
    assert sizes is not None
    wanted = ints(sizes)
    policy = str(call.get("keep_aspect_ratio_policy", "stretch"))
    if policy == "stretch":
        return {
            axis: (size / x.shape[axis] if x.shape[axis] else 1.0, size)
            for axis, size in zip(axes, wanted, strict=True)
        }
    ratios = [size / x.shape[axis] for axis, size in zip(axes, wanted, strict=True)]
    factor = min(ratios) if policy == "not_larger" else max(ratios)
    return {axis: (factor, math.floor(factor * x.shape[axis] + 0.5)) for axis in axes}


def _resized(x: Array, plan: Plan, rule: Rule) -> Array:
    outside = np.zeros((1,) * x.ndim, bool)
    y = x
    for axis, (factor, size) in plan.items():
        if factor == 1 and size == x.shape[axis] and not rule.roi:
            continue
        places, weights, beyond = _taps(axis, x.shape[axis], factor, size, rule)
        y = _gathered(y, axis, places, weights)
        outside = outside | beyond.reshape([-1 if at == axis else 1 for at in range(x.ndim)])
    return np.where(outside, rule.extrapolation, y) if outside.any() else y


def _gathered(x: Array, axis: int, places: Array, weights: Array | None) -> Array:
    """The weighted sum of the taps: `places` and `weights` are (output size, taps)."""
    if weights is None:
        return np.take(x, places[:, 0], axis=axis)
    shape = [-1 if at == axis else 1 for at in range(x.ndim)]
    y = np.take(x, places[:, 0], axis=axis) * weights[:, 0].reshape(shape)
    for tap in range(1, places.shape[1]):
        y += np.take(x, places[:, tap], axis=axis) * weights[:, tap].reshape(shape)
    return y


def _taps(axis: int, extent: int, factor: float, size: int, rule: Rule) -> tuple[Array, Array | None, Array]:
    """Which input elements each output element reads, with which weights, and which lie outside the input."""
    at = _coordinates(axis, extent, factor, size, rule)
    beyond = (at < 0) | (at > extent - 1) if rule.coordinates == "tf_crop_and_resize" else np.zeros(size, bool)
    if rule.mode == "nearest":
        return np.clip(_rounded(at, rule.nearest), 0, extent - 1)[:, np.newaxis], None, beyond
    stretch = min(1.0, factor) if rule.antialias else 1.0
    support = (2.0 if rule.mode == "cubic" else 1.0) / stretch
    reach = math.ceil(support)
    if rule.mode == "linear" and not rule.antialias:
        at = np.clip(at, 0, extent - 1)
    base = np.floor(at).astype(np.int64)
    places = base[:, np.newaxis] + np.arange(1 - reach, reach + 1)
    distance = np.abs(places - at[:, np.newaxis]) * stretch
    weights = _cubic(distance, rule.cubic) if rule.mode == "cubic" else np.maximum(0.0, 1.0 - distance)
    if rule.exclude_outside:
        weights = np.where((places < 0) | (places >= extent), 0.0, weights)
    if rule.exclude_outside or rule.antialias:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return np.clip(places, 0, extent - 1), weights, beyond


def _cubic(distance: Array, a: float) -> Array:
    """R. Keys, "Cubic convolution interpolation for digital image processing", 1981."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _coordinates(axis: int, extent: int, factor: float, size: int, rule: Rule) -> Array:
    """The place in the input that each output element stands at.

    Nearest decides on an index: there the coordinate is computed in float32, as runtimes do.
    """
    real: Any = np.float32 if rule.mode == "nearest" else np.float64
    out: Any = np.arange(size).astype(real)
    scale = real(factor)
    mode = rule.coordinates
    at: Array
    if mode == "asymmetric":
        at = out / scale
    elif mode == "align_corners":
        at = out * real(extent - 1) / real(size - 1) if size > 1 else np.zeros(size, real)
    elif mode == "pytorch_half_pixel":
        at = (out + real(0.5)) / scale - real(0.5) if size > 1 else np.zeros(size, real)
    elif mode == "tf_half_pixel_for_nn":
        at = (out + real(0.5)) / scale
    elif mode == "half_pixel_symmetric":
        adjustment = size / (factor * extent)
        at = real(extent / 2 * (1 - adjustment)) + (out + real(0.5)) / scale - real(0.5)
    elif mode == "tf_crop_and_resize":
        start, end = rule.roi[axis]
        step = (end - start) * (extent - 1) / (size - 1) if size > 1 else 0.0
        first = start * (extent - 1) if size > 1 else 0.5 * (start + end) * (extent - 1)
        at = real(first) + out * real(step)
    else:
        at = (out + real(0.5)) / scale - real(0.5)
    return at


def _rounded(at: Array, how: str) -> Array:
    if how == "round_prefer_floor":
        nearest = np.ceil(at - at.dtype.type(0.5))
    elif how == "round_prefer_ceil":
        nearest = np.floor(at + at.dtype.type(0.5))
    else:
        nearest = np.floor(at) if how == "floor" else np.ceil(at)
    places: Array = nearest.astype(np.int64)
    return places
