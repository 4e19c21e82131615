"""The float64 oracle: each kernel against ONNX Runtime, one row each; then what makes it an oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from bnfold.errors import ModelError
from bnfold.kernels.activation import erf
from bnfold.kernels.windows import Window
from bnfold.oracle import Oracle, TooLarge, Unsupported
from bnfold.runtime import Session

Array = npt.NDArray[Any]

RANDOM = np.random.default_rng(5)


def f(*shape: int) -> Array:
    """Signed float32 values."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def pos(*shape: int) -> Array:
    """Positive float32 values, away from 0."""
    return RANDOM.uniform(0.3, 2.0, shape).astype(np.float32)


def i(*values: Any) -> Array:
    """An int64 array."""
    return np.array(values, np.int64)


def s(*values: float) -> Array:
    """A float32 array."""
    return np.array(values, np.float32)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


NONE = None
BN = (f(3, 4, 5, 6), f(4), f(4), f(4), pos(4))

# op, opset, inputs, attributes, number of outputs
ROWS: list[tuple[str, int, tuple[Array | None, ...], dict[str, Any], int]] = [
    # Convolutions: any rank, groups, dilation, stride, every kind of padding.
    ("Conv", 22, (f(3, 4, 7, 9), f(8, 4, 3, 3), f(8)), {"pads": [1, 0, 2, 1], "strides": [2, 1]}, 1),
    ("Conv", 11, (f(2, 4, 7, 9), f(6, 2, 3, 2)), {"group": 2, "dilations": [2, 3]}, 1),
    ("Conv", 11, (f(2, 4, 7, 9), f(8, 1, 3, 3), f(8)), {"group": 4, "pads": [1, 1, 1, 1], "strides": [1, 2]}, 1),
    ("Conv", 11, (f(2, 4, 7, 9), f(4, 4, 1, 1)), {"strides": [2, 3], "pads": [1, 0, 0, 1]}, 1),
    ("Conv", 11, (f(2, 6, 7, 9), f(4, 3, 1, 1), f(4)), {"group": 2}, 1),
    ("Conv", 11, (f(2, 4, 7, 9), f(5, 4, 3, 4)), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 1),
    ("Conv", 11, (f(2, 4, 7, 9), f(5, 4, 2, 4)), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}, 1),
    ("Conv", 11, (f(2, 4, 7, 9), f(5, 4, 3, 3)), {"auto_pad": "VALID"}, 1),
    ("Conv", 11, (f(2, 4, 11), f(5, 4, 3), f(5)), {"pads": [2, 0], "dilations": [2]}, 1),
    ("Conv", 11, (f(2, 4, 5, 6, 7), f(6, 2, 3, 2, 3), f(6)), {"group": 2, "pads": [1, 0, 1, 0, 1, 1]}, 1),
    ("Conv", 1, (f(1, 3, 90, 64), f(16, 3, 7, 7)), {"strides": [2, 2], "pads": [3, 3, 3, 3]}, 1),
    ("ConvTranspose", 11, (f(2, 4, 5, 6), f(4, 3, 3, 2), f(3)), {"strides": [2, 3], "pads": [1, 0, 0, 1]}, 1),
    ("ConvTranspose", 11, (f(2, 4, 5, 6), f(4, 3, 3, 3), f(6)), {"group": 2, "dilations": [2, 1]}, 1),
    ("ConvTranspose", 11, (f(2, 4, 5, 6), f(4, 1, 4, 4)), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}, 1),
    ("ConvTranspose", 11, (f(2, 4, 5, 6), f(4, 3, 3, 3)), {"strides": [2, 2], "output_padding": [1, 1]}, 1),
    ("ConvTranspose", 11, (f(2, 4, 5, 6), f(4, 3, 3, 3)), {"strides": [2, 2], "output_shape": [10, 12]}, 1),
    ("ConvTranspose", 11, (f(2, 4, 5), f(4, 3, 4)), {"strides": [3], "output_shape": [14]}, 1),
    ("ConvTranspose", 11, (f(2, 4, 5, 6), f(4, 3, 4, 4)), {"strides": [3, 3], "auto_pad": "SAME_UPPER"}, 1),
    ("ConvTranspose", 11, (f(2, 4, 5, 6), f(4, 3, 4, 4)), {"strides": [3, 3], "auto_pad": "SAME_LOWER"}, 1),
    # BatchNormalization by its stored statistics, in the versions that ONNX Runtime has.
    ("BatchNormalization", 15, BN, {"epsilon": 0.1}, 1),
    ("BatchNormalization", 14, BN, {}, 1),
    ("BatchNormalization", 9, BN, {"epsilon": 1e-2}, 1),
    ("BatchNormalization", 7, BN, {}, 1),
    ("BatchNormalization", 7, (f(3, 4, 2), f(4, 2), f(4, 2), f(4, 2), pos(4, 2)), {"spatial": 0}, 1),
    ("BatchNormalization", 15, (f(3, 4), f(4), f(4), f(4), pos(4)), {}, 1),
    ("BatchNormalization", 15, BN, {"training_mode": 1, "momentum": 0.75}, 3),
    ("BatchNormalization", 14, (f(3, 4), f(4), f(4), f(4), pos(4)), {"training_mode": 1}, 3),
    # Other normalisations.
    ("InstanceNormalization", 6, (f(2, 3, 4, 5), f(3), f(3)), {"epsilon": 0.1}, 1),
    ("LayerNormalization", 17, (f(2, 3, 4), f(3, 4), f(3, 4)), {"axis": 1}, 3),
    ("LayerNormalization", 17, (f(2, 3, 4), f(4)), {}, 1),
    ("GroupNormalization", 21, (f(2, 6, 4, 5), f(6), f(6)), {"num_groups": 3}, 1),
    ("GroupNormalization", 18, (f(2, 6, 4, 5), f(3), f(3)), {"num_groups": 3, "epsilon": 0.1}, 1),
    ("RMSNormalization", 23, (f(2, 3, 4), f(4)), {"epsilon": 0.1}, 1),
    ("RMSNormalization", 23, (f(2, 3, 4), f(3, 4)), {"axis": 1}, 1),
    ("MeanVarianceNormalization", 13, (f(2, 3, 4, 5),), {"axes": [0, 2, 3]}, 1),
    ("LpNormalization", 1, (f(2, 3, 4),), {"p": 1, "axis": 1}, 1),
    ("LpNormalization", 1, (f(2, 3, 4),), {"p": 2}, 1),
    ("LRN", 13, (f(2, 7, 3, 4),), {"size": 5, "alpha": 0.5, "beta": 0.7, "bias": 2.0}, 1),
    ("LRN", 1, (f(2, 7, 3, 4),), {"size": 3}, 1),
    # Pooling.
    ("MaxPool", 12, (f(2, 3, 7, 9),), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, 1),
    ("MaxPool", 12, (f(2, 3, 7, 9),), {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1}, 1),
    ("MaxPool", 12, (f(2, 3, 7, 9),), {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}, 1),
    ("MaxPool", 12, (f(2, 3, 7, 9),), {"kernel_shape": [2, 3], "dilations": [2, 2]}, 1),
    ("MaxPool", 12, (f(2, 3, 7, 9),), {"kernel_shape": [2, 4], "auto_pad": "SAME_LOWER", "strides": [2, 2]}, 1),
    ("MaxPool", 12, (f(2, 3, 7, 9),), {"kernel_shape": [2, 4], "auto_pad": "SAME_UPPER"}, 1),
    ("MaxPool", 12, (f(2, 3, 7, 9),), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, 2),
    ("MaxPool", 8, (f(2, 3, 7, 9),), {"kernel_shape": [3, 3], "storage_order": 1}, 2),
    ("MaxPool", 8, (f(2, 3, 11),), {"kernel_shape": [3]}, 1),
    ("AveragePool", 11, (f(2, 3, 7, 9),), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, 1),
    ("AveragePool", 11, (f(2, 3, 7, 9),), {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}, 1),
    ("AveragePool", 19, (f(2, 3, 7, 9),), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}, 1),
    (
        "AveragePool",
        19,
        (f(2, 3, 8, 9),),
        {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1, "pads": [1, 0, 0, 0]},
        1,
    ),
    ("AveragePool", 19, (f(2, 3, 9, 9),), {"kernel_shape": [2, 3], "dilations": [3, 2], "pads": [1] * 4}, 1),
    ("AveragePool", 11, (f(2, 3, 7, 9),), {"kernel_shape": [2, 4], "auto_pad": "SAME_LOWER", "strides": [2, 2]}, 1),
    ("AveragePool", 11, (f(2, 3, 4, 7, 5),), {"kernel_shape": [2, 2, 3]}, 1),
    ("LpPool", 11, (f(2, 3, 7, 9),), {"kernel_shape": [3, 2], "p": 3, "pads": [1, 0, 0, 0]}, 1),
    ("AveragePool", 19, (f(1, 2, 3, 4),), {"kernel_shape": [6, 640], "strides": [9, 640], "ceil_mode": 1}, 1),
    ("AveragePool", 19, (f(2, 3, 9, 4),), {"kernel_shape": [2, 3], "dilations": [5, 3], "pads": [1, 2, 1, 2]}, 1),
    ("MaxPool", 12, (f(2, 3, 4, 5),), {"kernel_shape": [7, 7], "strides": [3, 2], "pads": [6, 5, 3, 4]}, 1),
    ("MaxPool", 12, (f(2, 3, 4, 5),), {"kernel_shape": [7, 7], "strides": [3, 2], "pads": [6, 5, 3, 4]}, 2),
    ("GlobalAveragePool", 1, (f(2, 3, 4, 5),), {}, 1),
    ("GlobalMaxPool", 1, (f(2, 3, 4, 5),), {}, 1),
    ("GlobalLpPool", 2, (f(2, 3, 4, 5),), {"p": 2}, 1),
    # Functions of one tensor.
    ("Relu", 14, (f(3, 4),), {}, 1),
    ("LeakyRelu", 16, (f(3, 4),), {}, 1),
    ("PRelu", 16, (f(3, 4, 5), f(4, 1)), {}, 1),
    ("ThresholdedRelu", 10, (f(3, 4),), {"alpha": 0.3}, 1),
    ("Clip", 13, (f(3, 4), scalar(-0.3), scalar(0.4)), {}, 1),
    ("Clip", 13, (f(3, 4), NONE, scalar(0.4)), {}, 1),
    ("Clip", 6, (f(3, 4),), {"min": -0.3, "max": 0.5}, 1),
    ("Sigmoid", 13, (f(30, 4) * 4,), {}, 1),
    ("HardSigmoid", 6, (f(30, 4) * 4,), {}, 1),
    ("HardSwish", 14, (f(30, 4) * 4,), {}, 1),
    ("Erf", 13, (f(30, 4),), {}, 1),
    ("Gelu", 20, (f(30, 4),), {}, 1),
    ("Gelu", 20, (f(30, 4),), {"approximate": "tanh"}, 1),
    ("Elu", 6, (f(30, 4),), {"alpha": 0.7}, 1),
    ("Celu", 12, (f(30, 4),), {"alpha": 0.7}, 1),
    ("Selu", 6, (f(30, 4),), {}, 1),
    ("Softplus", 1, (f(30, 4) * 4,), {}, 1),
    ("Softsign", 1, (f(30, 4),), {}, 1),
    ("Mish", 18, (f(30, 4),), {}, 1),
    ("Shrink", 9, (f(30, 4),), {"lambd": 0.4, "bias": 0.1}, 1),
    ("Reciprocal", 13, (pos(3, 4),), {}, 1),
    ("Round", 11, (s(-2.5, -1.5, 0.5, 1.5, 1.2),), {}, 1),
    ("IsInf", 10, (s(-math.inf, 1.0, math.inf),), {"detect_negative": 0}, 1),
    ("Tanh", 13, (f(30, 4),), {}, 1),
    # Functions of several.
    ("Add", 14, (f(3, 4, 5), f(4, 1)), {}, 1),
    ("Sub", 14, (f(4, 1), f(3, 4, 5)), {}, 1),
    ("Div", 14, (f(3, 4), pos(4)), {}, 1),
    ("Div", 14, (i(7, -7, 7, -7), i(2, 2, -2, -2)), {}, 1),
    ("Pow", 13, (pos(3, 4), f(4)), {}, 1),
    ("Mod", 13, (i(7, -7, 7, -7), i(3, 3, -3, -3)), {}, 1),
    ("Mod", 13, (f(3, 4), pos(4)), {"fmod": 1}, 1),
    ("Sum", 13, (f(3, 4), f(4), f(3, 1)), {}, 1),
    ("Mean", 13, (f(3, 4), f(4), f(3, 1)), {}, 1),
    ("Max", 13, (f(3, 4), f(4)), {}, 1),
    ("Min", 13, (f(3, 4), f(4)), {}, 1),
    ("MatMul", 13, (f(2, 3, 4), f(4, 5)), {}, 1),
    ("Gemm", 13, (f(4, 3), f(5, 4), f(5)), {"transA": 1, "transB": 1, "alpha": 0.3, "beta": 1.7}, 1),
    ("Gemm", 11, (f(3, 4), f(4, 5)), {"alpha": 2.0}, 1),
    ("Gemm", 7, (f(3, 4), f(4, 5), f(3, 1)), {}, 1),
    ("Einsum", 12, (f(2, 3, 4), f(4, 5)), {"equation": "bij, jk -> bik"}, 1),
    ("Where", 16, (np.array([True, False, True]), f(2, 3), f(3)), {}, 1),
    # Reductions and softmax.
    ("ReduceSum", 13, (f(2, 3, 4), i(1, -1)), {"keepdims": 0}, 1),
    ("ReduceSum", 13, (f(2, 3, 4),), {"noop_with_empty_axes": 1}, 1),
    ("ReduceMean", 11, (f(2, 3, 4),), {"axes": [1, 2]}, 1),
    ("ReduceMean", 18, (f(2, 3, 4), i(0)), {}, 1),
    ("ReduceMax", 13, (f(2, 3, 4),), {"axes": [-1], "keepdims": 0}, 1),
    ("ReduceMin", 13, (f(2, 3, 4),), {}, 1),
    ("ReduceProd", 13, (f(2, 3, 4),), {"axes": [1]}, 1),
    ("ReduceL1", 13, (f(2, 3, 4),), {"axes": [1]}, 1),
    ("ReduceL2", 13, (f(2, 3, 4),), {"axes": [1]}, 1),
    ("ReduceL2", 13, (f(2, 3, 4),), {"axes": [1, -2]}, 1),
    ("ReduceSumSquare", 13, (f(2, 3, 4),), {"axes": [1]}, 1),
    ("ReduceLogSum", 13, (pos(2, 3, 4),), {"axes": [1]}, 1),
    ("ReduceLogSumExp", 13, (f(2, 3, 4),), {"axes": [1], "keepdims": 0}, 1),
    ("ArgMax", 13, (f(2, 3, 4),), {"axis": 1}, 1),
    ("ArgMin", 13, (s(1, 0, 0, 2),), {"axis": 0, "select_last_index": 1, "keepdims": 0}, 1),
    ("Softmax", 13, (f(2, 3, 4),), {"axis": 1}, 1),
    ("Softmax", 11, (f(2, 3, 4),), {"axis": 1}, 1),
    ("Softmax", 1, (f(2, 3, 4),), {}, 1),
    ("LogSoftmax", 13, (f(2, 3, 4),), {}, 1),
    ("LogSoftmax", 11, (f(2, 3, 4),), {"axis": 1}, 1),
    ("Hardmax", 13, (f(2, 3, 4),), {"axis": 1}, 1),
    ("Hardmax", 11, (f(2, 3, 4),), {"axis": 1}, 1),
    ("CumSum", 14, (f(2, 3), np.array(1)), {"exclusive": 1, "reverse": 1}, 1),
    # What only moves.
    ("Reshape", 14, (f(2, 3, 4), i(0, -1)), {}, 1),
    ("Flatten", 13, (f(2, 3, 4),), {"axis": -1}, 1),
    ("Flatten", 13, (f(2, 3, 4),), {"axis": 0}, 1),
    ("Transpose", 13, (f(2, 3, 4),), {}, 1),
    ("Transpose", 13, (f(2, 3, 4),), {"perm": [1, 2, 0]}, 1),
    ("Squeeze", 13, (f(2, 1, 4, 1), i(-1)), {}, 1),
    ("Squeeze", 11, (f(2, 1, 4, 1),), {"axes": [1]}, 1),
    ("Squeeze", 11, (f(2, 1, 4, 1),), {}, 1),
    ("Unsqueeze", 13, (f(2, 3), i(0, -1)), {}, 1),
    ("Unsqueeze", 11, (f(2, 3),), {"axes": [1, 3]}, 1),
    ("Concat", 13, (f(2, 3), f(2, 4)), {"axis": -1}, 1),
    ("Split", 13, (f(2, 7), i(3, 4)), {"axis": 1}, 2),
    ("Split", 18, (f(2, 7),), {"axis": 1, "num_outputs": 3}, 3),
    ("Split", 11, (f(2, 6),), {"axis": 1}, 3),
    ("Split", 2, (f(2, 6),), {"axis": 1, "split": [1, 5]}, 2),
    ("Slice", 13, (f(6, 7), i(5, 1), i(-100, 100), i(0, 1), i(-2, 3)), {}, 1),
    ("Slice", 13, (f(6, 7), i(-3), i(2**62)), {}, 1),
    ("Slice", 9, (f(6, 7),), {"starts": [1, -4], "ends": [100, -1], "axes": [0, 1]}, 1),
    ("Compress", 17, (f(3, 4), np.array([True, False, True])), {"axis": 1}, 1),
    ("Compress", 11, (f(3, 4), np.array([False, True, True, False, True])), {}, 1),
    ("Gather", 13, (f(4, 5), i(0, -1, 2)), {"axis": 1}, 1),
    ("Gather", 13, (f(4, 5), np.array(2)), {}, 1),
    ("GatherElements", 13, (f(4, 5), np.array([[0, -1], [2, 3]])), {"axis": 1}, 1),
    ("Expand", 13, (f(3, 1), i(2, 1, 4)), {}, 1),
    ("Tile", 13, (f(2, 3), i(2, 3)), {}, 1),
    ("Pad", 13, (f(3, 4), i(1, 0, -1, 2), scalar(0.5)), {}, 1),
    ("Pad", 13, (f(3, 4), i(1, 2, 1, 0)), {"mode": "reflect"}, 1),
    ("Pad", 18, (f(3, 4), i(1, 2), NONE, i(1)), {"mode": "edge"}, 1),
    ("Pad", 19, (f(3, 4), i(1, 2, 1, 0)), {"mode": "wrap"}, 1),
    ("Pad", 2, (f(3, 4),), {"pads": [0, 1, 1, 0], "value": 2.0}, 1),
    ("DepthToSpace", 13, (f(2, 8, 3, 4),), {"blocksize": 2}, 1),
    ("DepthToSpace", 13, (f(2, 8, 3, 4),), {"blocksize": 2, "mode": "CRD"}, 1),
    ("SpaceToDepth", 13, (f(2, 3, 4, 6),), {"blocksize": 2}, 1),
    ("Shape", 15, (f(2, 3, 4),), {"start": 1, "end": -1}, 1),
    ("Size", 13, (f(2, 3, 4),), {}, 1),
    ("ConstantOfShape", 9, (i(2, 3),), {}, 1),
    ("Range", 11, (scalar(1), scalar(4.2), scalar(0.5)), {}, 1),
    ("NonZero", 13, (s(1, 0, 2),), {}, 1),
    ("Trilu", 14, (f(3, 4),), {"upper": 0}, 1),
    ("EyeLike", 9, (f(3, 4),), {"k": 1}, 1),
    ("Cast", 13, (s(-1.7, 0.0, 2.9),), {"to": TensorProto.INT32}, 1),
    ("Dropout", 13, (f(3, 4),), {}, 2),
    ("Dropout", 7, (f(3, 4),), {}, 1),
    # Resize and Upsample.
    ("Resize", 13, (f(2, 3, 4, 5), NONE, s(1, 1, 2, 3)), {"mode": "nearest"}, 1),
    ("Resize", 13, (f(2, 3, 4, 5), NONE, s(1, 1, 0.6, 1.7)), {"mode": "linear"}, 1),
    ("Resize", 13, (f(2, 3, 4, 5), NONE, s(1, 1, 0.6, 1.7)), {"mode": "cubic"}, 1),
    ("Resize", 13, (f(2, 3, 4, 5), NONE, NONE, i(2, 3, 7, 3)), {"mode": "linear"}, 1),
    ("Resize", 10, (f(2, 3, 4, 5), s(1, 1, 2, 1.4)), {"mode": "nearest"}, 1),
    ("Resize", 10, (f(2, 3, 4, 5), s(1, 1, 2, 1.4)), {"mode": "linear"}, 1),
    ("Upsample", 9, (f(2, 3, 4, 5), s(1, 1, 2, 3)), {"mode": "nearest"}, 1),
    ("Upsample", 9, (f(2, 3, 4, 5), s(1, 1, 2, 3)), {"mode": "linear"}, 1),
    ("Upsample", 7, (f(2, 3, 4, 5),), {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 2.0]}, 1),
    *[
        (
            "Resize",
            13,
            (f(1, 2, 5, 7), NONE, NONE, i(1, 2, 8, 4)),
            {"mode": mode, "coordinate_transformation_mode": coordinates},
            1,
        )
        for mode in ("nearest", "linear", "cubic")
        for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    ],
    *[
        (
            "Resize",
            13,
            (f(1, 1, 6, 5), NONE, s(1, 1, 1.5, 0.8)),
            {"mode": "nearest", "nearest_mode": rounding, "coordinate_transformation_mode": "asymmetric"},
            1,
        )
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ],
    (
        "Resize",
        13,
        (f(1, 2, 5, 7), s(0, 0, 0.2, -0.1, 1, 1, 0.9, 1.2), NONE, i(1, 2, 4, 6)),
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0},
        1,
    ),
    ("Resize", 13, (f(1, 1, 5, 7), NONE, s(1, 1, 0.6, 1.3)), {"mode": "cubic", "exclude_outside": 1}, 1),
    ("Resize", 18, (f(1, 2, 9, 7), NONE, s(0.5, 0.6)), {"mode": "linear", "antialias": 1, "axes": [2, 3]}, 1),
    ("Resize", 18, (f(1, 2, 9, 7), NONE, s(1, 1, 0.5, 0.6)), {"mode": "cubic", "antialias": 1}, 1),
    # Quantisation.
    ("QuantizeLinear", 13, (f(3, 4) * 3, s(0.02, 0.3, 0.05, 0.01), np.zeros(4, np.int8)), {"axis": 1}, 1),
    ("DequantizeLinear", 13, (np.array([[3, 250]], np.uint8), scalar(0.1), np.array(128, np.uint8)), {}, 1),
    # Recurrent operators: gates, directions, peepholes, lengths that differ.
    ("RNN", 14, (f(5, 3, 4), f(1, 6, 4), f(1, 6, 6), f(1, 12)), {"hidden_size": 6}, 2),
    ("RNN", 14, (f(5, 3, 4), f(2, 6, 4), f(2, 6, 6)), {"hidden_size": 6, "direction": "bidirectional"}, 2),
    (
        "RNN",
        14,
        (f(5, 3, 4), f(1, 6, 4), f(1, 6, 6), f(1, 12), np.array([5, 2, 3], np.int32), f(1, 3, 6)),
        {"hidden_size": 6, "direction": "reverse", "activations": ["LeakyRelu"], "activation_alpha": [0.2]},
        2,
    ),
    ("GRU", 14, (f(5, 3, 4), f(1, 18, 4), f(1, 18, 6), f(1, 36)), {"hidden_size": 6}, 2),
    (
        "GRU",
        14,
        (f(5, 3, 4), f(2, 18, 4), f(2, 18, 6), f(2, 36), np.array([5, 1, 4], np.int32), f(2, 3, 6)),
        {"hidden_size": 6, "direction": "bidirectional", "linear_before_reset": 1},
        2,
    ),
    (
        "GRU",
        14,
        (f(5, 3, 4), f(1, 18, 4), f(1, 18, 6), f(1, 36)),
        {
            "hidden_size": 6,
            "activations": ["HardSigmoid", "ScaledTanh"],
            "activation_alpha": [0.3, 1.5],
            "activation_beta": [0.4, 0.7],
        },
        2,
    ),
    ("LSTM", 14, (f(5, 3, 4), f(1, 24, 4), f(1, 24, 6), f(1, 48)), {"hidden_size": 6}, 3),
    (
        "LSTM",
        14,
        (
            *(f(5, 3, 4), f(2, 24, 4), f(2, 24, 6), f(2, 48), np.array([2, 5, 3], np.int32)),
            *(f(2, 3, 6), f(2, 3, 6), f(2, 18)),
        ),
        {"hidden_size": 6, "direction": "bidirectional", "activations": ["Sigmoid", "Softsign", "Tanh"] * 2},
        3,
    ),
    (
        "LSTM",
        14,
        (f(5, 3, 4), f(1, 24, 4), f(1, 24, 6), f(1, 48)),
        {"hidden_size": 6, "input_forget": 1, "direction": "reverse"},
        3,
    ),
    ("LSTM", 14, (f(5, 3, 4), f(1, 24, 4), f(1, 24, 6), f(1, 48)), {"hidden_size": 6, "clip": 0.5}, 3),
    # Nothing of our own: ONNX's function body, or onnx.reference.
    ("TopK", 11, (f(3, 6), i(2)), {"axis": 1}, 2),
    ("GatherND", 13, (f(3, 4, 5), np.array([[0, 1], [2, 3]])), {}, 1),
    ("ScatterElements", 16, (f(3, 4), np.array([[1, 0]]), f(1, 2)), {"axis": 1}, 1),
]


def single(op: str, opset: int, inputs: Sequence[Array | None], attributes: dict[str, Any], outputs: int) -> Any:
    """A model of one node, and its feeds."""
    names = [f"x{index}" if value is not None else "" for index, value in enumerate(inputs)]
    results = [f"y{index}" for index in range(outputs)]
    feeds = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if name}
    graph = helper.make_graph(
        [helper.make_node(op, names, results, **attributes)],
        "single",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in results],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), feeds


def row_name(row: tuple[Any, ...]) -> str:
    return f"{row[0]}-{row[1]}-" + ",".join(f"{key}={value}" for key, value in row[3].items())


@pytest.mark.parametrize("row", ROWS, ids=row_name)
def test_kernel_agrees_with_onnx_runtime(row: tuple[Any, ...]) -> None:
    model, feeds = single(*row)
    expected = Session(model.SerializeToString(), optimize=False).run(feeds)
    found = Oracle(model).run(feeds)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        if value.dtype == np.float32:
            assert found[name].dtype == np.float64
            np.testing.assert_allclose(found[name], value, rtol=0, atol=3e-6 * max(1.0, float(np.abs(value).max())))
        else:
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)


# What ONNX Runtime has no kernel for, against the equation.

X = f(3, 4, 5, 6)


@pytest.mark.parametrize("opset", [1, 6])
def test_batch_normalization_of_old_opsets(opset: int) -> None:
    scale, bias, mean, var = f(4), f(4), f(4), pos(4)
    attributes = {"is_test": 1, "epsilon": 0.01} | ({"consumed_inputs": [0, 0, 0, 1, 1]} if opset == 1 else {})
    model, feeds = single("BatchNormalization", opset, (X, scale, bias, mean, var), attributes, 1)
    wide = [array.astype(np.float64).reshape(1, 4, 1, 1) for array in (scale, bias, mean, var)]
    epsilon = float(np.float32(0.01))
    expected = wide[0] * (X - wide[2]) / np.sqrt(wide[3] + epsilon) + wide[1]
    np.testing.assert_allclose(Oracle(model).run(feeds)["y0"], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("opset", [1, 6])
def test_broadcast_of_old_opsets_starts_at_its_axis(opset: int) -> None:
    model, feeds = single("Mul", opset, (X, f(4, 5)), {"broadcast": 1, "axis": 1}, 1)
    expected = X.astype(np.float64) * feeds["x1"].astype(np.float64)[:, :, np.newaxis]
    np.testing.assert_array_equal(Oracle(model).run(feeds)["y0"], expected)


@pytest.mark.parametrize(("op", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_recurrent_operators_with_the_batch_first(op: str, gates: int) -> None:
    inputs = f(5, 3, 4), f(2, gates * 6, 4), f(2, gates * 6, 6), f(2, gates * 12), None, f(2, 3, 6)
    attributes = {"hidden_size": 6, "direction": "bidirectional"}
    model, feeds = single(op, 14, inputs, attributes, 2)
    expected = Oracle(model).run(feeds)
    turned = (inputs[0].swapaxes(0, 1), *inputs[1:5], inputs[5].swapaxes(0, 1))
    model, feeds = single(op, 14, turned, {**attributes, "layout": 1}, 2)
    found = Oracle(model).run(feeds)
    np.testing.assert_array_equal(found["y0"], expected["y0"].transpose(2, 0, 1, 3))
    np.testing.assert_array_equal(found["y1"], expected["y1"].swapaxes(0, 1))


def test_prelu_of_old_opsets_has_a_slope_per_channel() -> None:
    model, feeds = single("PRelu", 6, (X, f(4)), {}, 1)
    slope = feeds["x1"].astype(np.float64).reshape(4, 1, 1)
    np.testing.assert_array_equal(Oracle(model).run(feeds)["y0"], np.where(X < 0, slope * X, X))


OLD: list[tuple[str, int, tuple[Array, ...], dict[str, Any], Array]] = [
    ("Reshape", 1, (X,), {"shape": [0, -1]}, X.reshape(3, -1)),
    ("Pad", 1, (X,), {"paddings": [0, 0, 1, 0, 0, 0, 0, 2]}, np.pad(X, [(0, 0), (0, 0), (1, 0), (0, 2)])),
    ("Slice", 1, (X,), {"starts": [1], "ends": [3], "axes": [2]}, X[:, :, 1:3]),
    ("Clip", 1, (X,), {"max": 0.5, "min": -0.5}, np.clip(X, -0.5, 0.5)),
    ("Concat", 1, (X, X), {}, np.concatenate([X, X], 1)),
    ("Dropout", 6, (X,), {"is_test": 1}, X),
    ("Cast", 1, (X,), {"to": "INT32"}, np.trunc(X).astype(np.int32)),
    ("Tile", 1, (X, i(2), i(1)), {}, np.tile(X, (1, 2, 1, 1))),
    ("Upsample", 1, (X,), {"height_scale": 2.0, "width_scale": 1.0, "mode": "nearest"}, X.repeat(2, axis=2)),
]


@pytest.mark.parametrize("row", OLD, ids=row_name)
def test_attribute_forms_of_old_opsets(row: tuple[str, int, tuple[Array, ...], dict[str, Any], Array]) -> None:
    op, opset, inputs, attributes, expected = row
    model, feeds = single(op, opset, inputs, attributes, 1)
    np.testing.assert_array_equal(Oracle(model).run(feeds)["y0"], expected)


REFUSED: list[tuple[str, int, tuple[Array, ...], dict[str, Any], int]] = [
    ("BatchNormalization", 6, BN, {"is_test": 0}, 1),
    ("BatchNormalization", 9, BN, {}, 5),
    ("Dropout", 6, (X,), {"is_test": 0}, 1),
    ("RandomNormalLike", 1, (X,), {}, 1),
    ("NoSuchOp", 13, (X,), {}, 1),
]


@pytest.mark.parametrize("row", REFUSED, ids=row_name)
def test_what_cannot_be_evaluated_says_which_op(row: tuple[Any, ...]) -> None:
    model, feeds = single(*row)
    with pytest.raises(Unsupported) as caught:
        Oracle(model).run(feeds)
    assert caught.value.op == row[0]
    assert row[0] in str(caught.value)


def test_erf_is_float64_throughout() -> None:
    x = np.concatenate([np.linspace(-7, 7, 5001), [0.46875, -0.46875, np.inf, -np.inf]])
    np.testing.assert_allclose(erf(x), [math.erf(value) for value in x], rtol=5e-16, atol=0)
    assert np.isnan(erf(np.array([np.nan])))[0]


# What makes it an oracle.


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    initializers: dict[str, Array],
    *,
    shape: Sequence[int] = (2, 3),
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    **extra: Any,
) -> onnx.ModelProto:
    """x -> y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **extra)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_nothing_is_rounded_whatever_the_stored_type(dtype: Any) -> None:
    weight = np.array([1.0, 3.0, 7.0]).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Div", ["x", "w"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT16),
        helper.make_node("CastLike", ["b", "w"], ["y"]),
    ]
    model = graph_of(nodes, {"w": weight}, kind=kind)
    y = Oracle(model).run({"x": np.ones((2, 3)).astype(dtype)})["y"]
    np.testing.assert_array_equal(y, np.broadcast_to(1 / np.array([1.0, 3.0, 7.0]), (2, 3)))


def test_nodes_may_stand_in_any_order() -> None:
    nodes = [helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Abs", ["x"], ["a"])]
    assert Oracle(graph_of(nodes, {})).run({"x": s(-2)})["y"] == -2


def test_a_cycle_is_said() -> None:
    nodes = [helper.make_node("Neg", ["y"], ["a"]), helper.make_node("Add", ["a", "x"], ["y"])]
    with pytest.raises(ModelError, match="cycle"):
        Oracle(graph_of(nodes, {})).run({"x": s(1)})


def test_interior_tensors_can_be_asked_for() -> None:
    nodes = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    seen: list[str] = []
    found = Oracle(graph_of(nodes, {})).run({"x": s(-2)}, ["a", "y"], watch=lambda name, value: seen.append(name))
    assert found["a"] == 2
    assert found["y"] == -2
    assert seen == ["a", "y"]


def test_if_and_loop_see_the_tensors_around_them() -> None:
    def branch(op: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node(op, ["x", "w"], ["z"])], op, [], [onnx.ValueInfoProto(name="z")])

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["c2"]),
            helper.make_node("Add", ["v", "w"], ["v2"]),
            helper.make_node("Identity", ["v2"], ["out"]),
        ],
        "body",
        [onnx.ValueInfoProto(name=name) for name in ("n", "c", "v")],
        [onnx.ValueInfoProto(name=name) for name in ("c2", "v2", "out")],
    )
    nodes = [
        helper.make_node("If", ["yes"], ["a"], then_branch=branch("Mul"), else_branch=branch("Add")),
        helper.make_node("Loop", ["three", "", "a"], ["last", "y"], body=body),
    ]
    model = graph_of(nodes, {"w": s(10, 100), "yes": np.array(True), "three": np.array(3)}, shape=[2])
    np.testing.assert_array_equal(Oracle(model).run({"x": s(1, 2)})["y"], [[20, 300], [30, 400], [40, 500]])


def test_scan_carries_and_stacks() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["s2"]), helper.make_node("Identity", ["s2"], ["out"])],
        "body",
        [onnx.ValueInfoProto(name=name) for name in ("s", "e")],
        [onnx.ValueInfoProto(name=name) for name in ("s2", "out")],
    )
    nodes = [helper.make_node("Scan", ["zero", "x"], ["last", "y"], body=body, num_scan_inputs=1)]
    model = graph_of(nodes, {"zero": s(0)}, shape=[3, 1])
    np.testing.assert_array_equal(Oracle(model).run({"x": s(1, 2, 4).reshape(3, 1)})["y"], [[1], [3], [7]])


def test_a_model_function_takes_its_attributes() -> None:
    function = helper.make_function(
        "local",
        "Leak",
        ["a"],
        ["b"],
        [helper.make_node("LeakyRelu", ["a"], ["b"])],
        [helper.make_opsetid("", 17)],
        attributes=["slope"],
    )
    reference = onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    function.node[0].attribute.append(reference)
    nodes = [helper.make_node("Leak", ["x"], ["y"], domain="local", slope=0.5)]
    model = graph_of(nodes, {}, shape=[2], functions=[function])
    np.testing.assert_array_equal(Oracle(model).run({"x": s(-2, 2)})["y"], [-1, 2])


def test_external_data_is_read_where_it_lies(tmp_path: Path) -> None:
    weight = f(3)
    model = graph_of([helper.make_node("Mul", ["x", "w"], ["y"])], {"w": weight})
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    np.testing.assert_array_equal(Oracle(path).run({"x": np.ones((2, 3), np.float32)})["y"][0], weight)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match=r"m\.data"):
        Oracle(path).run({"x": np.ones((2, 3), np.float32)})


def conv_model(channels: int = 8) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    return graph_of(nodes, {"w": f(channels, 3, 3, 3)}, shape=[1, 3, 20, 30])


def test_cost_counts_multiply_adds_and_live_bytes() -> None:
    cost = Oracle(conv_model()).cost({"x": (1, 3, 20, 30)})
    assert cost.macs == 8 * 18 * 28 * 27
    assert cost.live_bytes == 2 * 8 * 8 * 18 * 28
    assert cost.complete


def test_what_a_window_never_sees_costs_nothing() -> None:
    """A mean over 640 x 640 places of an image of 2 x 3, as ceil_mode allows: 409,600 taps, six elements."""
    win = Window((640, 640), (640, 640), (1, 1), (0, 0), (0, 0), (1, 1)).touching((2, 3))
    assert win.kernel == (2, 3) and win.begin == (0, 0)


def test_taps_in_front_of_the_first_element_cut_the_input() -> None:
    win = Window((4,), (1,), (4,), (5,), (0,), (1,)).touching((7,))
    assert (win.kernel, win.begin) == ((1,), (-3,))
    assert win.reduce(np.arange(7.0), 0.0, np.add) == [3.0]


def test_what_is_too_large_is_refused() -> None:
    feeds = {"x": np.ones((1, 3, 20, 30), np.float32)}
    with pytest.raises(TooLarge, match="multiply-adds"):
        Oracle(conv_model(), max_macs=1e5).run(feeds)
    with pytest.raises(TooLarge, match="GiB"):
        Oracle(conv_model(), max_bytes=1e4).run(feeds)
    chain = parser.parse_graph("g (float[N] x) => (float[N] y) { a = Neg (x) b = Neg (a) c = Neg (b) y = Neg (c) }")
    with pytest.raises(TooLarge, match="multiply-adds"):
        Oracle(helper.make_model(chain), max_macs=3.5e5).run({"x": np.ones(3, np.float32)})


GROWING = {
    "ConstantOfShape": "y = ConstantOfShape (sizes)",
    "Pad": "y = Pad (x, pads)",
    "Pad along one axis": "y = Pad (x, pad, , last)",
    "Range": "zero = Constant <value_float = 0.0> () m = Constant <value_float = 1e15> () "
    "n = Constant <value_float = 1.0> () y = Range (zero, m, n)",
    "Resize": "y = Resize (x, , , sizes)",
    "Resize by scales": "y = Resize (x, , scales)",
    "Tile": "y = Tile (x, sizes)",
}


@pytest.mark.parametrize("nodes", GROWING.values(), ids=GROWING)
def test_what_would_make_too_much_is_refused_before_it_does(nodes: str) -> None:
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]> g (float[1, 2] x) => (float[A, B] y)
        <int64[2] sizes = {{1, 1000000000000000}}, float[2] scales = {{1, 1e15}}, int64[1] last = {{-1}},
        int64[4] pads = {{0, 3, 0, 1000000000000000}}, int64[2] pad = {{0, 1000000000000000}}> {{ {nodes} }}"""
    )
    with pytest.raises(TooLarge, match="GiB"):
        Oracle(model).run({"x": np.ones((1, 2), np.float32)})


@pytest.mark.parametrize(("made", "body"), [("h", ""), ("p", "p = Identity (h)")], ids=["nothing in it", "a copy"])
def test_a_loop_that_would_turn_for_hours_is_refused(made: str, body: str) -> None:
    """Its turns do no arithmetic."""
    model = parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 18]> g (float[N] x) => (float[N] y) {{
        n = Constant <value_int: int = 1099511627776> () go = Constant <value: tensor = bool {{1}}> ()
        y = Loop (n, go, x) <body: graph = b (int64 i, bool on, float[N] h) => (bool on, float[N] {made}) {{ {body} }}>
    }}""")
    with pytest.raises(TooLarge, match="multiply-adds"):
        Oracle(model, max_macs=1e8).run({"x": np.ones(3, np.float32)})


def test_a_rounding_moves_the_result_by_the_stored_precision() -> None:
    feeds = {"x": RANDOM.standard_normal((1, 3, 20, 30)).astype(np.float32)}
    oracle = Oracle(conv_model())
    exact = oracle.run(feeds)["y"]
    for weights_only in (False, True):
        moved = oracle.run(feeds, rounding_seed=1, weights_only=weights_only)["y"]
        relative = np.linalg.norm(moved - exact) / np.linalg.norm(exact)
        assert 2**-26 < relative < 2**-22
    np.testing.assert_array_equal(moved, oracle.run(feeds, rounding_seed=1, weights_only=True)["y"])
    np.testing.assert_array_equal(exact, oracle.run(feeds)["y"])


def test_a_rounding_leaves_sizes_alone() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "factors"], ["sizes"]),
        helper.make_node("Floor", ["sizes"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["target"], to=TensorProto.INT64),
        helper.make_node("Resize", ["x", "", "", "target"], ["y"], mode="nearest"),
    ]
    model = graph_of(nodes, {"factors": s(1, 1, 2, 3)}, shape=[1, 1, 5, 7])
    x = f(1, 1, 5, 7)
    for seed in range(4):
        assert Oracle(model).run({"x": x}, rounding_seed=seed)["y"].shape == (1, 1, 10, 21)


def test_a_missing_input_is_said() -> None:
    with pytest.raises(ModelError, match="'x'"):
        Oracle(conv_model()).run({})
