"""Normalisations: by stored statistics (BatchNormalization) or by the tensor's own."""

from __future__ import annotations

import math

import numpy as np

from bnfold.kernels.base import Array, Call, kernel


def _per_channel(parameter: Array, rank: int) -> Array:
    return parameter.reshape((1, -1) + (1,) * (rank - 2)) if rank > 1 else parameter


@kernel("BatchNormalization")
def batch_normalization(call: Call, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> tuple[Array, ...]:
    """scale * (x - mean) / sqrt(var + epsilon) + bias, in every version of the operator, and running statistics."""
    if call.version < 7 and not call.get("is_test", 0):
        raise call.refuse("is_test = 0 normalises by the batch (training)")
    if call.version < 14 and any(call.wants(index) for index in range(1, 5)):
        raise call.refuse("its statistics outputs are used (training)")
    running: tuple[Array, ...] = ()
    if call.get("training_mode", 0):  # by the batch: of weights, say, that are standardised
        along, old = (0, *range(2, x.ndim)), call.get("momentum")
        batch = x.mean(axis=along), x.var(axis=along)
        running = mean * old + batch[0] * (1 - old), var * old + batch[1] * (1 - old)
        mean, var = batch
    factor = scale / np.sqrt(var + call.get("epsilon"))
    if call.version < 9 and not call.get("spatial", 1):
        # One parameter for each element of a sample (opset 7: shaped like the sample, opset 1: maybe flat).
        shape = (1, *x.shape[1:])
        return ((x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape),)
    y = (x - _per_channel(mean, x.ndim)) * _per_channel(factor, x.ndim) + _per_channel(bias, x.ndim)
    return y, *running


@kernel("InstanceNormalization")
def instance_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Array:
    """Each channel of each sample by its own mean and variance."""
    axes = tuple(range(2, x.ndim))
    normal = _normal(x, axes, call.get("epsilon"))
    return normal * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


def _normal(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centred = x - x.mean(axis=axes, keepdims=True)
    y: Array = centred / np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + epsilon)
    return y


@kernel("GroupNormalization")
def group_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Array:
    """Each group of channels of each sample; scale and bias are per group in version 18, per channel from 21."""
    groups = int(call.get("num_groups"))
    grouped = x.reshape(x.shape[0], groups, -1)
    normal = _normal(grouped, (2,), call.get("epsilon"))
    if call.version < 21:
        return (normal * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)).reshape(x.shape)
    return normal.reshape(x.shape) * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


@kernel("LayerNormalization")
def layer_normalization(
    call: Call, x: Array, scale: Array, bias: Array | None = None
) -> Array | tuple[Array, Array, Array]:
    """All axes from `axis` on, by their own mean and variance."""
    axes = tuple(range(int(call.get("axis", -1)) % x.ndim, x.ndim))
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    inverse = 1 / np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + call.get("epsilon"))
    y = centred * inverse * scale
    y = y if bias is None else y + bias
    return (y, mean, inverse) if call.wants(1) or call.wants(2) else y


@kernel("RMSNormalization")
def rms_normalization(call: Call, x: Array, scale: Array) -> Array:
    """x over its root mean square on all axes from `axis` on."""
    axes = tuple(range(int(call.get("axis", -1)) % x.ndim, x.ndim))
    y: Array = x / np.sqrt((x * x).mean(axis=axes, keepdims=True) + call.get("epsilon")) * scale
    return y


@kernel("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Array) -> Array:
    """(x - mean) / (standard deviation + 1e-9) over `axes`."""
    axes = tuple(call.get("axes") or (0, 2, 3))
    y: Array = (x - x.mean(axis=axes, keepdims=True)) / (x.std(axis=axes, keepdims=True) + 1e-9)
    return y


@kernel("LpNormalization")
def lp_normalization(call: Call, x: Array) -> Array:
    """x over its L1 or L2 norm along `axis`."""
    axis, p = int(call.get("axis", -1)), int(call.get("p", 2))
    size = np.abs(x).sum(axis=axis, keepdims=True) if p == 1 else np.sqrt((x * x).sum(axis=axis, keepdims=True))
    y: Array = np.divide(x, size, out=np.zeros_like(x), where=size != 0)
    return y


@kernel("LRN")
def local_response_normalization(call: Call, x: Array) -> Array:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels)^beta."""
    size, channels = int(call.get("size")), x.shape[1]
    before, after = (size - 1) // 2, math.ceil((size - 1) / 2)
    squares = np.zeros_like(x)
    for offset in range(-before, after + 1):
        low, high = max(0, -offset), min(channels, channels - offset)
        squares[:, low:high] += x[:, low + offset : high + offset] ** 2
    y: Array = x / (call.get("bias") + call.get("alpha") / size * squares) ** call.get("beta")
    return y


@kernel("Dropout")
def dropout(
    call: Call, x: Array, ratio: Array | None = None, training: Array | None = None
) -> Array | tuple[Array, Array]:
    """The input itself: inference only."""
    training_mode = (call.version < 7 and not call.get("is_test", 0)) or (training is not None and bool(training.any()))
    if training_mode and (ratio is None or bool(np.any(ratio != 0))):
        raise call.refuse("it drops elements at random (training)")
    mask_type = np.dtype(bool) if call.version >= 10 else x.dtype
    return (x, np.ones(x.shape, mask_type)) if call.wants(1) else x
