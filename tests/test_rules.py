"""Every rule under one law, in both directions: an affine in front of the operator, and one behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests.builder import Builder
from tests.law import law
from tests.rows import ALL, IMAGE, SCALES, TRAP, Apply, Row, cases, holds, node

ABSORBERS = ("conv", "deconv", "gemm", "matmul")


def conv(out: int, *kernel: int, **attributes: Any) -> Apply:
    return lambda b, x: b.conv(x, out, *kernel, **attributes)


def deconv(out: int, *kernel: int, **attributes: Any) -> Apply:
    return lambda b, x: b.conv_transpose(x, out, *kernel, **attributes)


def gemm(out: int, **attributes: Any) -> Apply:
    return lambda b, x: b.gemm(x, out, **attributes)


def split_and_joined(b: Builder, x: str) -> str:
    """Uneven parts of the channels, joined in another order."""
    parts = [b.name("part") for _ in range(2)]
    if b.opset < 13:
        b.node("Split", x, outputs=parts, axis=1, split=[2, 4])
    elif b.opset < 18:
        b.node("Split", x, b.constant([2, 4], "sizes"), outputs=parts, axis=1)
    else:
        b.node("Split", x, outputs=parts, axis=1, num_outputs=2)
    return b.node("Concat", *parts[::-1], axis=1)


def sliced(start: int, end: int, step: int, axis: int = 1) -> Apply:
    def apply(b: Builder, x: str) -> str:
        if b.opset < 10:
            return b.node("Slice", x, starts=[start], ends=[end], axes=[axis])
        return b.node("Slice", x, *(b.constant([value], "slice") for value in (start, end, axis, step)))

    return apply


def gathered(*indices: int) -> Apply:
    return lambda b, x: b.node("Gather", x, b.constant(list(indices), "indices"), axis=1)


def resized(mode: str, *scales: float, **attributes: Any) -> Apply:
    def apply(b: Builder, x: str) -> str:
        roi = "" if b.opset >= 13 else b.constant(np.zeros(0), "roi")
        return b.node("Resize", x, roi, b.constant(list(scales), "scales", TensorProto.FLOAT), mode=mode, **attributes)

    return apply


def cropped(outside: float, *region: float, factor: float = 1.0) -> Apply:
    def apply(b: Builder, x: str) -> str:
        roi = b.constant(region or [0.0, 0.0, -0.2, 0.1, 1.0, 1.0, 0.8, 1.3], "roi", TensorProto.FLOAT)
        scales = b.constant([1.0, 1.0, factor, 1.0], "scales", TensorProto.FLOAT)
        mode = "tf_crop_and_resize"
        return b.node(
            "Resize", x, roi, scales, mode="linear", coordinate_transformation_mode=mode, extrapolation_value=outside
        )

    return apply


def upsampled(b: Builder, x: str) -> str:
    if b.opset < 9:
        return b.node("Upsample", x, scales=[1.0, 1.0, 2.0, 3.0])
    return b.node("Upsample", x, b.constant([1.0, 1.0, 2.0, 3.0], "scales", TensorProto.FLOAT))


def reduced(op: str, *axes: int, keepdims: int = 1) -> Apply:
    def apply(b: Builder, x: str) -> str:
        if b.opset < (13 if op == "ReduceSum" else 18):
            return b.node(op, x, axes=list(axes), keepdims=keepdims)
        return b.node(op, x, b.constant(list(axes), "axes"), keepdims=keepdims)

    return apply


def padded(*pads: int, value: float = 0.0, mode: str = "constant") -> Apply:
    def apply(b: Builder, x: str) -> str:
        if b.opset < 11:
            return b.node("Pad", x, mode=mode, value=value, pads=list(pads))
        return b.node("Pad", x, b.constant(list(pads), "pads"), b.constant(value, "border"), mode=mode)

    return apply


def there_and_back(b: Builder, x: str) -> str:
    return b.node("Cast", b.node("Cast", x, to=TensorProto.FLOAT), to=TensorProto.DOUBLE)


def chosen(b: Builder, x: str) -> str:
    side = b.node("Greater", b.input(*b.shape(x), name="side"), b.constant(0.0))
    return b.node("Where", side, x, sliced(-1, -100, -1, 3)(b, x))


def chosen_by_constant(b: Builder, x: str) -> str:
    return b.node("Where", b.constant(b.normal(7, 5) > 0), x, b.constant(b.normal(6, 7, 1)))


def compressed(b: Builder, x: str) -> str:
    y = b.node("Compress", x, b.constant(np.arange(6) % 3 != 1), axis=1)
    b.declare(y, 3, 4, 7, 5)  # shape inference does not look at the condition
    return y


def summed(b: Builder, x: str) -> str:
    return b.node("Sum", b.constant(b.normal(5)), x, b.constant(0.5), x, b.constant(b.normal(6, 1, 1)))


def averaged(b: Builder, x: str) -> str:
    return b.node("Mean", x, b.constant(b.normal(6, 1, 1)), b.constant(b.normal(1)))


def gated(op: str) -> Apply:
    def apply(b: Builder, x: str) -> str:
        gate = b.node("Sigmoid", b.input(*b.shape(x), name="gate"))
        return b.node(op, *((x, gate) if op == "Mul" else (gate, x)))

    return apply


SLOPES = [0.3, -0.4, 1.7, 0.01, -2.0, 0.25]

ROWS = [
    # Conv: every scale; a shift in front only where no window reaches padding.
    Row("conv 1x1", conv(4, 1), ALL, ALL, opsets=(1, 6, 7, 9, 11, 13, 14, 15, 17, 22)),
    Row("conv without bias", conv(4, 1, bias=False), ALL, ALL),
    Row("conv 3x3 unpadded", conv(4, 3), ALL, ALL),
    Row("conv 3x2", conv(4, 3, 2), ALL, ALL),
    Row("conv square weights", conv(6, 3), ALL, ALL),
    Row("conv 3x3 padded", conv(4, 3, pads=[1, 1, 1, 1]), SCALES, ALL),
    Row("conv padded in front only", conv(4, 3, pads=[1, 0, 0, 0]), SCALES, ALL),
    Row("conv padded at one end", conv(4, 3, pads=[0, 0, 0, 1]), SCALES, ALL),
    Row("conv end pad that no window reaches", conv(4, 3, 2, pads=[0, 0, 1, 0], strides=[3, 1]), ALL, ALL),
    Row("conv end pad that a window reaches", conv(4, 3, 2, pads=[0, 0, 2, 0], strides=[3, 1]), SCALES, ALL),
    Row("conv 1x1 with pads", conv(4, 1, pads=[0, 1, 0, 1]), SCALES, ALL),
    Row("conv 1x1 with strides", conv(4, 1, strides=[2, 3]), ALL, ALL),
    Row("conv strides with remainder", conv(4, 3, strides=[3, 2]), ALL, ALL),
    Row("conv dilated", conv(4, 2, dilations=[3, 2]), ALL, ALL),
    Row("conv dilated and padded", conv(4, 2, dilations=[3, 2], pads=[0, 0, 0, 2]), SCALES, ALL),
    Row("conv grouped", conv(4, 3, group=2), ALL, ALL),
    Row("conv three groups", conv(9, 1, 2, group=3), ALL, ALL),
    Row("conv depthwise", conv(6, 3, group=6), ALL, ALL),
    Row("conv depthwise, two filters each", conv(12, 3, group=6), ALL, ALL),
    Row("conv depthwise padded", conv(6, 3, group=6, pads=[1, 1, 1, 1]), SCALES, ALL),
    Row("conv auto_pad VALID", conv(4, 3, auto_pad="VALID"), ALL, ALL),
    Row("conv auto_pad SAME_UPPER", conv(4, 3, auto_pad="SAME_UPPER"), SCALES, ALL),
    Row("conv auto_pad SAME_LOWER", conv(4, 3, auto_pad="SAME_LOWER"), SCALES, ALL),
    Row("conv auto_pad SAME_UPPER, 1x1", conv(4, 1, auto_pad="SAME_UPPER", strides=[2, 2]), ALL, ALL),
    Row("conv auto_pad SAME_LOWER, total 0", conv(4, 2, auto_pad="SAME_LOWER", strides=[2, 2]), ALL, ALL, (3, 6, 8, 4)),
    Row("conv auto_pad SAME_UPPER, odd", conv(4, 2, auto_pad="SAME_UPPER", strides=[2, 2]), SCALES, ALL, (3, 6, 8, 5)),
    Row("conv W == C", conv(5, 1), ALL, ALL, TRAP),
    Row("conv 1d", conv(4, 3), ALL, ALL, (3, 6, 9)),
    Row("conv 3d", conv(4, 2, 1, 3), ALL, ALL, (3, 6, 4, 3, 5)),
    Row("conv empty bias", lambda b, x: b.node("Conv", x, b.constant(b.normal(4, 6, 1, 1)), ""), ALL, ALL),
    # ConvTranspose: a shift in front only where every output sees exactly one input.
    Row("deconv 1x1", deconv(4, 1), ALL, ALL, opsets=(1, 11, 17, 22)),
    Row("deconv 1x1 without bias", deconv(4, 1, bias=False), ALL, ALL),
    Row("deconv 1x1 grouped", deconv(4, 1, group=2), ALL, ALL),
    Row("deconv 1x1 cropped", deconv(4, 1, pads=[1, 0, 0, 1]), ALL, ALL),
    Row("deconv 3x3", deconv(4, 3), SCALES, ALL),
    Row("deconv grouped, strided", deconv(9, 2, 3, group=3, strides=[2, 1]), SCALES, ALL),
    Row("deconv depthwise", deconv(6, 3, group=6, pads=[1, 0, 1, 1]), SCALES, ALL),
    Row("deconv 1x1 stride 2", deconv(4, 1, strides=[2, 2]), SCALES, ALL),
    Row("deconv output_padding", deconv(4, 2, strides=[2, 2], output_padding=[1, 0]), SCALES, ALL),
    Row("deconv output_shape", deconv(4, 2, strides=[2, 2], output_shape=[15, 11]), SCALES, ALL),
    Row("deconv 1x1 output_shape", deconv(4, 1, output_shape=[7, 5]), SCALES, ALL),
    Row("deconv 1d square", deconv(6, 2), SCALES, ALL, (3, 6, 9)),
    # Gemm
    Row("gemm", gemm(4), ALL, ALL, (3, 6), opsets=(1, 6, 7, 9, 11, 13, 14, 15, 17, 22)),
    Row("gemm square", gemm(6), ALL, ALL, (3, 6)),
    Row("gemm transB", gemm(4, transB=1), ALL, ALL, (3, 6)),
    Row("gemm alpha and beta", gemm(4, alpha=0.5, beta=-1.75), ALL, ALL, (3, 6), opsets=(6, 17)),
    Row("gemm beta 0", gemm(4, alpha=-1.5, beta=0.0), ALL, ALL, (3, 6), opsets=(6, 17)),
    Row("gemm without C", gemm(4, bias=None, alpha=2.0, beta=0.5), ALL, ALL, (3, 6)),
    Row("gemm scalar C", gemm(4, bias=()), ALL, ALL, (3, 6)),
    Row("gemm C of one", gemm(4, bias=(1,), beta=2.0), ALL, ALL, (3, 6)),
    Row("gemm C of rows", gemm(4, bias=(3, 1), beta=2.0, transB=1), ALL, ALL, (3, 6)),
    Row("gemm full C", gemm(4, bias=(3, -1)), ALL, ALL, (3, 6), opsets=(6, 17)),
    # MatMul
    Row("matmul 2d", lambda b, x: b.matmul(x, 4), ALL, "upsztbn", (3, 6), opsets=(1, 6, 7, 9, 13, 17)),
    Row("matmul 2d with bias", lambda b, x: b.matmul(x, 4, bias=True), ALL, ALL, (3, 6), opsets=(7, 17)),
    Row("matmul square", lambda b, x: b.matmul(x, 6), ALL, "upsztbn", (3, 6)),
    # BatchNormalization takes up anything that needs no constant undone.
    Row("bn", lambda b, x: b.bn(x), ALL, ALL, opsets=(1, 6, 7, 8, 9, 14, 15, 17, 22)),
    Row("bn 2d", lambda b, x: b.bn(x), ALL, ALL, (3, 6)),
    # Constant Mul and Add
    Row("mul", lambda b, x: b.per_channel("Mul", x, b.normal(6)), ALL, ALL, opsets=(6, 7, 13, 14, 17)),
    Row("mul by a scalar", lambda b, x: b.per_channel("Mul", x, -0.5), ALL, ALL, opsets=(6, 17)),
    Row("div", lambda b, x: b.per_channel("Div", x, b.normal(6)), ALL, ALL, opsets=(6, 7, 17)),
    Row("add", lambda b, x: b.per_channel("Add", x, b.normal(6)), ALL, ALL, opsets=(6, 7, 17)),
    Row("sub", lambda b, x: b.per_channel("Sub", x, b.normal(6)), ALL, ALL, opsets=(6, 7, 17)),
    Row("sub from a constant", lambda b, x: b.per_channel("Sub", x, b.normal(6), left=True), ALL, ALL),
    Row("mul, constant left, W == C", lambda b, x: b.per_channel("Mul", x, b.normal(5), left=True), ALL, ALL, TRAP),
    # Activations: positive scales; a channel that is zero anyway.
    Row("relu", node("Relu"), "upz", "upz", opsets=(1, 6, 13, 14, 17)),
    Row("leaky relu", node("LeakyRelu", alpha=0.3), "upz", "upz", opsets=(1, 6, 16, 17)),
    Row("leaky relu, negative slope", node("LeakyRelu", alpha=-0.3), "upz", "upz"),
    Row("prelu", lambda b, x: b.prelu(x, SLOPES), "upsz", "upz", opsets=(1, 6, 7, 9, 16, 17)),
    Row("prelu, one slope", lambda b, x: b.node("PRelu", x, b.constant([-0.7])), "upsz", "upz", opsets=(6, 17)),
    Row("prelu, positive slopes", lambda b, x: b.prelu(x, np.abs(SLOPES)), "upsz", "upsz", opsets=(6, 7, 9, 17)),
    Row(
        "prelu, one positive slope", lambda b, x: b.node("PRelu", x, b.constant([0.3])), "upsz", "upsz", opsets=(6, 17)
    ),
    Row("prelu, a slope of zero", lambda b, x: b.prelu(x, [0.5, 0.0, 0.5, 0.5, -2.0, 0.5]), "upz", "upz"),
    Row(
        "prelu, slopes in space",
        lambda b, x: b.node("PRelu", x, b.constant(b.rng.uniform(0.1, 2, (6, 1, 5)))),
        "upz",
        "upz",
    ),
    Row("prelu, slopes at run time", lambda b, x: b.node("PRelu", x, b.input(6, 1, 1, name="k")), "up", "upz"),
    Row("abs", node("Abs"), SCALES, "upz", opsets=(1, 6, 13, 17)),
    Row("tanh", node("Tanh"), "", "", opsets=(1, 6, 13, 17)),
    Row("gelu", node("Gelu"), "", "", opsets=(20,)),
    Row("power of two", lambda b, x: b.node("Pow", x, b.constant(2.0)), "ups", "up", opsets=(7, 13, 17)),
    Row("power of three", lambda b, x: b.node("Pow", x, b.constant(np.array(3))), "ups", "ups", opsets=(12, 17)),
    Row("power of a half", lambda b, x: b.node("Pow", b.node("Abs", x), b.constant(0.5)), "ups", "up"),
    Row("square root", lambda b, x: b.node("Sqrt", b.node("Abs", x)), "ups", "up", opsets=(6, 13, 17)),
    # The largest and the smallest: all stored alike, a negative scale for all swaps them.
    Row(
        "max with a number", lambda b, x: b.node("Max", x, b.constant(0.3)), "upzctb", "upzctb", opsets=(8, 12, 13, 17)
    ),
    Row("min with channels", lambda b, x: b.node("Min", b.constant(b.normal(6, 1, 1)), x), "upzctb", "upzctb"),
    Row(
        "max with all of it",
        lambda b, x: b.node("Max", b.constant(b.normal(3, 6, 7, 5)), x),
        "upctb",
        "upzctb",
        opsets=(6, 17),
    ),
    Row(
        "min with two numbers",
        lambda b, x: b.node("Min", b.constant(0.5), x, b.constant(b.normal(5))),
        "upctb",
        "upzctb",
    ),
    Row(
        "max with itself turned",
        lambda b, x: b.node("Max", x, sliced(-1, -100, -1, 3)(b, x)),
        "upzctb",
        "upzctb",
        opsets=(10, 17),
    ),
    Row("min with its pool", lambda b, x: b.node("Min", x, b.node("GlobalMaxPool", x)), "upztb", "upztb"),
    Row("max of one", node("Max"), "upzctb", "upzctb", opsets=(6, 17)),
    Row("where", chosen_by_constant, "upsctb", ALL, opsets=(9, 16, 17)),
    Row("where at run time", chosen, "upsctb", ALL),
    Row("sigmoid", node("Sigmoid"), "", ""),
    Row("softmax", node("Softmax", axis=1), "", ""),
    # Pooling
    Row("lp pool", node("LpPool", kernel_shape=[3, 2], pads=[1, 0, 0, 1], p=3), "ups", "upz", opsets=(2, 11, 18, 22)),
    Row("global lp pool", node("GlobalLpPool"), "ups", "upz", opsets=(2, 17, 22)),
    Row(
        "max pool",
        node("MaxPool", kernel_shape=[3, 2], pads=[1, 0, 1, 1]),
        "upztb",
        "upztb",
        opsets=(1, 8, 10, 12, 17, 22),
    ),
    Row("max pool ceil", node("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), "upztb", "upztb"),
    Row("max pool dilated", node("MaxPool", kernel_shape=[2, 2], dilations=[2, 3]), "upztb", "upztb"),
    Row("global max pool", node("GlobalMaxPool"), "upztb", "upztb", opsets=(1, 17, 22)),
    Row("average pool", node("AveragePool", kernel_shape=[3, 2]), ALL, ALL, opsets=(1, 7, 10, 11, 17, 19, 22)),
    Row("average pool padded", node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), ALL, ALL),
    Row("average pool SAME", node("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_UPPER"), ALL, ALL),
    Row(
        "average pool ceil",
        node("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        ALL,
        ALL,
        opsets=(10, 22),
    ),
    Row(
        "average pool that counts padding",
        node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        SCALES,
        SCALES,
    ),
    Row("average pool that counts no padding", node("AveragePool", kernel_shape=[3, 3], count_include_pad=1), ALL, ALL),
    Row("global average pool", node("GlobalAveragePool"), ALL, ALL, opsets=(1, 17, 22)),
    # What moves elements
    Row("identity", node("Identity"), ALL, ALL, opsets=(1, 13, 16, 17)),
    Row("dropout", lambda b, x: b.dropout(x), ALL, ALL, opsets=(1, 6, 7, 10, 12, 13, 17, 22)),
    Row("dropout, training_mode false", lambda b, x: b.dropout(x, training=False), ALL, ALL, opsets=(12, 13, 17)),
    Row("transpose to NHWC", node("Transpose", perm=[0, 2, 3, 1]), ALL, ALL, axis=3),
    Row("transpose of space", node("Transpose", perm=[0, 1, 3, 2]), ALL, ALL, TRAP),
    Row(
        "transpose there and back",
        lambda b, x: node("Transpose", perm=[3, 1, 0, 2])(b, node("Transpose", perm=[2, 1, 3, 0])(b, x)),
        ALL,
        ALL,
    ),
    Row("transpose without perm", lambda b, x: node("Transpose")(b, node("Transpose")(b, x)), ALL, ALL),
    Row("flatten of space", node("Flatten"), ALL, "u", (3, 6, 4, 2), opsets=(1, 9, 11, 13, 17)),
    Row("flatten", node("Flatten"), ALL, ALL, (3, 6, 1, 1)),
    Row("flatten axis -3", node("Flatten", axis=-3), ALL, ALL, (3, 6, 1, 1)),
    Row("reshape of space", lambda b, x: b.reshape(x, 3, 6, -1), ALL, ALL, opsets=(1, 5, 13, 14, 17)),
    Row("reshape 0 -1", lambda b, x: b.reshape(x, 0, -1), ALL, "u", (3, 6, 4, 2)),
    Row("reshape there and back", lambda b, x: b.reshape(b.reshape(x, 3, 2, 3, -1), *IMAGE), ALL, ALL),
    Row(
        "reshape shuffles",
        lambda b, x: b.reshape(b.node("Transpose", b.reshape(x, 3, 2, 3, -1), perm=[0, 2, 1, 3]), *IMAGE),
        ALL,
        ALL,
    ),
    Row("reshape merges batch and channels", lambda b, x: b.reshape(x, 18, 7, 5), "u", "u"),
    Row("squeeze", lambda b, x: b.squeeze(x, 3), ALL, ALL, (3, 6, 5, 1), opsets=(1, 11, 13, 17)),
    Row("squeeze -1", lambda b, x: b.squeeze(x, -1, 2), ALL, ALL, (3, 6, 1, 1), opsets=(11, 17)),
    Row("unsqueeze", lambda b, x: b.unsqueeze(x, 2), ALL, ALL, (3, 6, 5), opsets=(1, 11, 13, 17)),
    Row("unsqueeze -1", lambda b, x: b.unsqueeze(x, 2, -1), ALL, ALL, (3, 6), opsets=(11, 17)),
    Row(
        "concat with a constant",
        lambda b, x: b.node("Concat", x, b.constant(b.normal(3, 2, 7, 5)), axis=1),
        ALL,
        ALL,
        opsets=(4, 11, 13, 17),
    ),
    Row("concat with itself", lambda b, x: b.node("Concat", x, x, axis=1), ALL, "u", opsets=(4, 17)),
    Row("concat of space", lambda b, x: b.node("Concat", x, x, axis=-1), ALL, ALL),
    # Sums and products
    Row("add to itself", lambda b, x: b.node("Add", x, x), ALL, ALL, opsets=(6, 7, 17)),
    Row("sub of itself", lambda b, x: b.node("Sub", x, x), ALL, SCALES),
    Row("sum of three", lambda b, x: b.node("Sum", x, x, x), ALL, ALL, opsets=(1, 6, 8, 17)),
    Row("sum with constants", summed, "upsctb", ALL, opsets=(8, 13, 17)),
    Row("mean", lambda b, x: b.node("Mean", x, x, x), ALL, ALL, opsets=(1, 6, 8, 13, 17)),
    Row("mean with constants", averaged, ALL, ALL, opsets=(8, 13, 17)),
    Row("mul by itself", lambda b, x: b.node("Mul", x, x), "upsz", ""),
    Row(
        "mul by what enlarges it",
        lambda b, x: b.node("Mul", x, b.constant(b.normal(1, 6, 5))),
        SCALES,
        SCALES,
        (3, 6, 1),
    ),
    Row("gate", gated("Mul"), SCALES, SCALES, opsets=(6, 7, 13, 17)),
    Row("mul by its sigmoid", lambda b, x: b.node("Mul", x, b.node("Sigmoid", x)), "", ""),
    Row("add of its global pool", lambda b, x: b.node("Add", x, b.node("GlobalAveragePool", x)), ALL, SCALES),
    # What picks and repeats elements: an element read for several outputs needs them to agree.
    Row("split and joined", split_and_joined, ALL, ALL, opsets=(4, 11, 13, 17, 18, 22)),
    Row("slice of channels", sliced(1, 5, 1), ALL, ALL, opsets=(4, 9, 10, 13, 17)),
    Row("slice of channels, backwards", sliced(-1, -100, -2), ALL, ALL),
    Row("slice of the first, backwards from before it", sliced(-100, -100, -1), ALL, ALL),
    Row("slice of space", sliced(1, 100, 2, axis=-1), ALL, ALL),
    Row("gather", gathered(3, -1, 0), ALL, ALL, opsets=(1, 11, 13, 17)),
    Row(
        "gather one",
        lambda b, x: b.node("Gather", x, b.constant(np.array(-2)), axis=3),
        ALL,
        ALL,
        opsets=(1, 11, 13, 17),
    ),
    Row("gather one channel", lambda b, x: b.node("Gather", x, b.constant(np.array(2)), axis=1), ALL, "u"),
    Row("gather a table", lambda b, x: b.node("Gather", x, b.constant([[0, 1, 2], [5, 4, 3]]), axis=1), "u", ALL),
    Row("gather a table in space", lambda b, x: b.node("Gather", x, b.constant([[0], [4]]), axis=3), ALL, ALL),
    Row("compress", compressed, ALL, ALL),
    Row("triangle", lambda b, x: b.node("Trilu", x, b.constant(np.array(1)), upper=0), SCALES, SCALES, opsets=(14, 17)),
    Row("cumulative sum", lambda b, x: b.node("CumSum", x, b.constant(np.array(-1))), SCALES, SCALES, opsets=(11, 17)),
    Row("cumulative sum of channels", lambda b, x: b.node("CumSum", x, b.constant(np.array(1))), "u", "u"),
    Row("gather one twice", gathered(3, 1, 3), ALL, "u"),
    Row("gather in space", lambda b, x: b.node("Gather", x, b.constant([1, 1]), axis=3), ALL, ALL),
    Row("tile of space", lambda b, x: b.node("Tile", x, b.constant([1, 1, 2, 3])), ALL, ALL, opsets=(6, 13, 17)),
    Row("tile of channels", lambda b, x: b.node("Tile", x, b.constant([1, 2, 1, 1])), ALL, "u"),
    Row("expand of space", lambda b, x: b.node("Expand", x, b.constant([3, 6, 4, 5])), ALL, ALL, (3, 6, 1, 1)),
    Row("expand of channels", lambda b, x: b.node("Expand", x, b.constant([3, 6, 4, 5])), ALL, "u", (3, 1, 4, 5)),
    Row("depth to space", node("DepthToSpace", blocksize=2), "u", ALL, (3, 8, 3, 2), opsets=(1, 11, 13, 17)),
    Row("depth to space CRD", node("DepthToSpace", blocksize=2, mode="CRD"), "u", ALL, (3, 8, 3, 2)),
    Row("space to depth", node("SpaceToDepth", blocksize=2), ALL, "u", (3, 5, 6, 4), opsets=(1, 13, 17)),
    Row("space to depth of one block", node("SpaceToDepth", blocksize=2), ALL, "u", (3, 5, 2, 2)),
    # What combines elements
    Row("resize linear", resized("linear", 1.0, 1.0, 2.0, 1.5), ALL, ALL, opsets=(11, 13, 17, 18, 19)),
    Row("upsample", upsampled, ALL, ALL, opsets=(7, 9)),
    Row("resize nearest", resized("nearest", 1.0, 1.0, 2.0, 3.0), ALL, ALL),
    Row("resize cubic", resized("cubic", 1.0, 1.0, 2.0, 1.5), ALL, ALL),
    Row("resize cubic without outside", resized("cubic", 1.0, 1.0, 2.0, 1.5, exclude_outside=1), ALL, ALL),
    Row("resize antialiased", resized("linear", 1.0, 1.0, 0.5, 0.6, antialias=1), ALL, ALL, opsets=(18,)),
    Row("resize cropped", cropped(0.0, factor=2.0), SCALES, SCALES, opsets=(11, 13, 17)),
    Row("resize cropped in channels", cropped(0.0, 0.0, -0.5, 0.0, 0.0, 1.0, 0.5, 1.0, 1.0), "u", "u"),
    Row("resize cropped with a number", cropped(0.5), "", "", opsets=(11, 17)),
    Row("resize of channels that keeps their number", resized("linear", 1.0, 1.1, 1.0, 1.0), "u", "u"),
    Row("reduce mean", reduced("ReduceMean", 2, 3), ALL, ALL, opsets=(1, 11, 13, 17, 18)),
    Row("reduce mean to fewer axes", reduced("ReduceMean", -1, 2, keepdims=0), ALL, ALL, opsets=(1, 11, 17, 18)),
    Row("reduce mean of channels", reduced("ReduceMean", 1), "u", ALL),
    Row("reduce sum", reduced("ReduceSum", 2, 3), ALL, ALL, opsets=(1, 11, 13, 17)),
    Row("reduce max", reduced("ReduceMax", 3), "upzctb", "upzctb", opsets=(1, 11, 17, 18, 20)),
    Row("reduce min", reduced("ReduceMin", 3, keepdims=0), "upzctb", "upzctb"),
    Row("reduce min, dropped axes in another way", reduced("ReduceMin", 3, keepdims=10), "upzctb", "upzctb"),
    Row("reduce L1", reduced("ReduceL1", 2, 3), "ups", "upz", opsets=(1, 11, 13, 17, 18)),
    Row("reduce L2 to fewer axes", reduced("ReduceL2", -1, 2, keepdims=0), "ups", "upz", opsets=(1, 11, 17, 18)),
    Row("reduce L1 of channels", reduced("ReduceL1", 1), "u", "upsz"),
    Row("reduce sum of squares", reduced("ReduceSumSquare", 2, 3), "ups", "upz", opsets=(1, 11, 13, 17, 18)),
    Row("reduce log of a sum of exponentials", reduced("ReduceLogSumExp", 3), "t", "t", opsets=(1, 13, 17, 18)),
    Row("negation", node("Neg"), ALL, ALL, opsets=(6, 13, 17)),
    Row("cast like another", lambda b, x: b.node("CastLike", x, b.input(1, name="like")), ALL, ALL, opsets=(15, 19)),
    Row("cast to float32 and back", there_and_back, ALL, ALL, opsets=(6, 9, 13, 17, 19)),
    Row("clip", lambda b, x: b.node("Clip", x, b.constant(-0.5), b.constant(1.5)), "u", "u", opsets=(11, 13, 17)),
    Row("clip of opset 6", node("Clip", min=-0.5, max=1.5), "", "", opsets=(6,)),
    Row("clip at run time", lambda b, x: b.node("Clip", x, b.input(name="low")), "", ""),
    Row("pad", padded(0, 0, 1, 0, 0, 0, 2, 1), SCALES, SCALES, opsets=(2, 11, 13, 17, 18, 21)),
    Row("pad with a number", padded(0, 0, 1, 0, 0, 0, 2, 1, value=0.5), "u", "u"),
    Row("pad edge", padded(0, 0, 1, 0, 0, 0, 2, 1, mode="edge"), ALL, ALL),
    Row("pad of channels", padded(0, 1, 0, 0, 0, 0, 0, 0), ALL, ALL, opsets=(11, 13, 17)),
    Row("pad of channels at both ends", padded(0, 1, 0, 0, 0, 2, 0, 0), ALL, SCALES, opsets=(2, 11, 17)),
    Row("pad of channels and space", padded(0, 1, 0, 0, 0, 0, 0, 1), SCALES, SCALES),
    Row("pad of channels with a number", padded(0, 0, 0, 0, 0, 2, 0, 0, value=-0.5), ALL, "u"),
    Row("pad of channels that crops", padded(0, -1, 0, 0, 0, 0, 0, 0), "u", "u"),
    Row("pad that crops", padded(0, 0, -1, 0, 0, 0, 0, -2), ALL, ALL),
]


@pytest.mark.parametrize(("row", "side", "kind", "opset"), cases(ROWS))
def test_an_affine_leaves_or_stays(row: Row, side: str, kind: str, opset: int) -> None:
    holds(row, side, kind, opset)


@pytest.mark.parametrize("kind", ["s", "b", "n"])
@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name.split()[0] in ABSORBERS], ids=lambda row: str(row.name)
)
def test_affines_on_both_sides_of_an_absorber(row: Row, kind: str) -> None:
    b = Builder(row.opsets[-1])
    b.affine(row.apply(b, b.affine(b.input(*row.shape), kind)), kind)
    law(b.model(), left=0 if kind in row.front else 1)
