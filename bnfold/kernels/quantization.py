"""QuantizeLinear and DequantizeLinear. What lies between them is real numbers here."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from bnfold.kernels.base import Array, Call, kernel, numpy_type


def _along(call: Call, parameter: Array, x: Array) -> Array:
    """A per-axis or per-block parameter, shaped like `x`."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = int(call.get("axis", 1)) % x.ndim
    if parameter.ndim == 1:
        return parameter.reshape([-1 if at == axis else 1 for at in range(x.ndim)])
    block = int(call.get("block_size", 0))
    repeated = np.repeat(parameter, block, axis=axis)
    return repeated[tuple(slice(0, size) for size in x.shape)]


@kernel("DequantizeLinear")
def dequantize_linear(call: Call, x: Array, scale: Array, zero: Array | None = None) -> Array:
    """(x - zero) * scale."""
    values = x.astype(np.float64)
    if zero is not None:
        values = values - _along(call, zero, x).astype(np.float64)
    return values * _along(call, scale, x)


@kernel("QuantizeLinear")
def quantize_linear(call: Call, x: Array, scale: Array, zero: Array | None = None) -> Array:
    """round_half_even(x / scale) + zero, saturated to the integer type."""
    code = int(call.get("output_dtype", 0) or 0)
    dtype = numpy_type(code) if code else (np.dtype(np.uint8) if zero is None else zero.dtype)
    try:
        limits = ml_dtypes.iinfo(dtype)
    except ValueError:
        raise call.refuse(f"to {dtype}") from None
    offset = 0.0 if zero is None else _along(call, zero, x).astype(np.float64)
    values = np.rint(x / _along(call, scale, x)) + offset
    return np.clip(values, int(limits.min), int(limits.max)).astype(dtype)
