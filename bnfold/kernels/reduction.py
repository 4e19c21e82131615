"""Reductions, softmax and its kin."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.kernels.base import Array, Call, Kernel, ints, is_float, kernel


def _reduced_axes(call: Call, x: Array, axes: Array | None) -> tuple[int, ...] | None:
    """The axes to reduce; None where the input is returned as it is."""
    chosen = call.attributes.get("axes") if axes is None else axes
    if chosen is None or np.asarray(chosen).size == 0:
        return None if call.get("noop_with_empty_axes", 0) == 1 else tuple(range(x.ndim))
    return tuple(sorted({axis % x.ndim for axis in ints(chosen)}))  # one that is named twice is reduced once


def _log_sum_exp(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    largest = x.max(axis=axis, keepdims=True)
    shift = np.where(np.isfinite(largest), largest, 0.0)
    y: Array = np.log(np.exp(x - shift).sum(axis=axis, keepdims=True)) + shift
    return y if keepdims else y.squeeze(axis=axis)


def _typed_sum(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    y: Array = x.sum(axis=axis, keepdims=keepdims, dtype=x.dtype)
    return y


def _mean(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    y: Array = x.mean(axis=axis, keepdims=keepdims)
    return y if is_float(x) else np.trunc(y).astype(x.dtype)


def _of(before: Any, reduce: Any, after: Any = None) -> Any:
    def apply(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
        y = reduce(before(x), axis=axis, keepdims=keepdims)
        result: Array = y if after is None else after(y)
        return result

    return apply


_REDUCTIONS = {
    "ReduceSum": _typed_sum,
    "ReduceMean": _mean,
    "ReduceMax": lambda x, axis, keepdims: x.max(axis=axis, keepdims=keepdims),
    "ReduceMin": lambda x, axis, keepdims: x.min(axis=axis, keepdims=keepdims),
    "ReduceProd": lambda x, axis, keepdims: x.prod(axis=axis, keepdims=keepdims, dtype=x.dtype),
    "ReduceL1": _of(np.abs, _typed_sum),
    "ReduceL2": _of(np.square, _typed_sum, np.sqrt),
    "ReduceSumSquare": _of(np.square, _typed_sum),
    "ReduceLogSum": _of(lambda x: x, _typed_sum, np.log),
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduction(function: Any) -> Kernel:
    def apply(call: Call, x: Array, axes: Array | None = None) -> Array:
        chosen = _reduced_axes(call, x, axes)
        if chosen is None:
            return x
        y: Array = np.asarray(function(x, axis=chosen, keepdims=call.get("keepdims", 1) == 1))
        return y

    return apply


for _op, _function in _REDUCTIONS.items():
    kernel(_op)(_reduction(_function))


@kernel("ArgMax", "ArgMin")
def arg_extreme(call: Call, x: Array) -> Array:
    """The index of the largest (smallest) element along `axis`, the first one or the last."""
    axis = int(call.get("axis", 0)) % x.ndim
    find = np.argmax if call.op == "ArgMax" else np.argmin
    if call.get("select_last_index", 0):
        y = x.shape[axis] - 1 - find(np.flip(x, axis), axis=axis)
    else:
        y = find(x, axis=axis)
    if call.get("keepdims", 1) == 1:
        y = np.expand_dims(y, axis)
    return np.asarray(y).astype(np.int64)


def _softmax_axes(call: Call, x: Array) -> tuple[int, ...]:
    """Below opset 13 the axis and all after it are one."""
    axis = int(call.get("axis")) % max(1, x.ndim)
    return (axis,) if call.version >= 13 else tuple(range(axis, x.ndim))


@kernel("Softmax")
def softmax(call: Call, x: Array) -> Array:
    """exp(x) over its sum along the axis."""
    axes = _softmax_axes(call, x)
    e = np.exp(x - x.max(axis=axes, keepdims=True))
    y: Array = e / e.sum(axis=axes, keepdims=True)
    return y


@kernel("LogSoftmax")
def log_softmax(call: Call, x: Array) -> Array:
    """x minus the logarithm of the sum of exp(x) along the axis."""
    return x - _log_sum_exp(x, _softmax_axes(call, x), True)


@kernel("Hardmax")
def hardmax(call: Call, x: Array) -> Array:
    """1 at the first largest element along the axis, 0 elsewhere."""
    axes = _softmax_axes(call, x)
    flat = x.reshape(*x.shape[: axes[0]], -1) if call.version < 13 else np.moveaxis(x, axes[0], -1)
    one = np.zeros_like(flat)
    np.put_along_axis(one, np.argmax(flat, axis=-1)[..., np.newaxis], 1, axis=-1)
    return one.reshape(x.shape) if call.version < 13 else np.moveaxis(one, -1, axes[0])


@kernel("CumSum")
def cumulative_sum(call: Call, x: Array, axis: Array) -> Array:
    """Running sums along an axis, from either end, with or without the element itself."""
    along = int(axis.ravel()[0]) % x.ndim
    y = np.flip(x, along) if call.get("reverse", 0) else x
    total = np.cumsum(y, axis=along, dtype=x.dtype)
    total = total - y if call.get("exclusive", 0) else total
    return np.flip(total, along) if call.get("reverse", 0) else total
