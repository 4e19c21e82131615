"""Nodes that become one: what merges into what, what stays, and that the result is the same and certified."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import bnfold
from bnfold import merges, rules, skeleton
from bnfold.folding import Wishes
from bnfold.graph import Model
from bnfold.oracle import Oracle
from bnfold.patch import witness_of
from bnfold.plan import NewConstant
from bnfold.rules import Source
from bnfold.source import read
from bnfold.witness import Merged, Witness
from bnfold.write import folded
from tests.builder import Builder
from tests.merging import SAME, Row, agree, certified, check, image, ops, run, solved, spoilt


def zeros(b: Builder, x: str, *pads: int, value: float = 0.0) -> str:
    return b.node("Pad", x, b.constant([0, 0, *pads[:2], 0, 0, *pads[2:]]), b.constant(value))


def with_dropout(channels: int, b: Builder) -> str:
    x = image(b, channels)
    return b.node("Add", b.conv(x, channels, 3, group=channels, **SAME), b.dropout(x, training=False))


def repvgg(b: Builder, x: str, stride: int = 1, bias: bool = False) -> str:
    """3x3 and 1x1, each with its BatchNormalization; and one of the input itself where that fits."""
    strides: Any = [stride, stride]
    y = b.bn(b.conv(x, 4, 3, bias=bias, strides=strides, **SAME))
    y = b.node("Add", y, b.bn(b.conv(x, 4, 1, bias=bias, strides=strides)))
    return b.node("Add", y, b.bn(x)) if stride == 1 else y


def both(b: Builder, x: str, op: str = "Add", first: Any = None, second: Any = None) -> str:
    """Two convolutions of one tensor."""
    made = [b.conv(x, how.pop("out", 4), *how.pop("kernel"), **how) for how in (dict(first), dict(second))]
    return b.node(op, *made)


def wide(**how: Any) -> dict[str, Any]:
    return {"kernel": (3,), **SAME, **how}


def point(**how: Any) -> dict[str, Any]:
    return {"kernel": (1,), **how}


def sized(b: Builder, *shape: int | str, stride: int, mode: str = "") -> str:
    x = image(b, 4, *shape)
    strides: Any = {"strides": [stride, stride]}
    padded: Any = {"auto_pad": mode} if mode else SAME
    return b.node("Add", b.conv(x, 4, 3, **strides, **padded), b.conv(x, 4, 1, **strides))


def token_mixer(b: Builder) -> str:
    """FastViT: x + gamma * (mixer(x) - norm(x))."""
    x = image(b)
    mixed = b.node("Add", b.bn(b.conv(x, 4, 3, group=4, **SAME)), b.bn(x))
    return b.node("Add", x, b.per_channel("Mul", b.node("Sub", mixed, b.bn(x)), b.normal(4)))


def pool(b: Builder, x: str, **how: Any) -> str:
    return b.node("AveragePool", x, kernel_shape=[3, 3], **SAME, **how)


def diverse(b: Builder) -> str:
    """DBB (X. Ding et al., 2021): a kernel, a 1x1, a 1x1 in front of a kernel, and in front of a pool."""
    x = image(b)
    pointed = b.bn(b.conv(b.conv(x, 4, 1, bias=False), 4, 3, bias=False, **SAME))
    pooled = b.bn(pool(b, b.conv(x, 4, 1, bias=False), count_include_pad=1))
    return b.node("Sum", b.bn(b.conv(x, 4, 3, **SAME)), b.bn(b.conv(x, 4, 1)), pointed, pooled)


def computed_weights(b: Builder) -> str:
    """A matrix that is transposed, one that a node holds, and one that is scaled: all before the model runs."""
    x = b.input(2, 5, 6)
    held = b.node(
        "Constant",
        value=onnx.numpy_helper.from_array(b.normal(6, 6).astype(onnx.helper.tensor_dtype_to_np_dtype(b.type)), "held"),
    )
    turned = b.node("Transpose", b.constant(b.normal(6, 6)), perm=[1, 0])
    scaled = b.node("Mul", b.constant(b.normal(6, 6)), b.constant(b.normal(6)))
    return b.node("Sum", x, *(b.node("MatMul", x, weight) for weight in (held, turned, scaled)))


def on_the_left(b: Builder, x: str, out: int, bias: bool = False) -> str:
    """A constant matrix times x, perhaps with a bias."""
    y = b.node("MatMul", b.constant(b.normal(out, b.shape(x)[-2]), "matmul.weight"), x)
    return b.node("Add", y, b.constant(b.normal(out, 1), "matmul.bias")) if bias else y


def mixed(b: Builder) -> str:
    """From the left and from the right."""
    x = b.input(2, 5, 5)
    return b.node("Add", on_the_left(b, x, 5), b.matmul(x, 5))


def residual(b: Builder, x: str) -> str:
    return b.node("Add", b.matmul(x, 6, True), b.matmul(x, 6))


def stacked(b: Builder, x: str, count: int) -> str:
    for _ in range(count):
        x = b.conv(x, 4, 1, scale=0.3)
    return x


def heads(b: Builder) -> str:
    """LeViT and RepViT: the mean of two classifiers, each behind its own BatchNormalization."""
    x = b.input(3, 6)
    total = b.node("Add", b.gemm(b.bn(x), 5, transB=1), b.gemm(b.bn(x), 5, transB=1))
    return b.node("Div", total, b.constant(2.0))


def shared_weights(b: Builder) -> str:
    x = image(b)
    weight = b.constant(b.normal(4, 4, 3, 3), "weight")
    return b.node("Add", b.node("Conv", x, weight, **SAME), b.node("Conv", x, weight, **SAME))


def twice(b: Builder, x: str) -> str:
    return b.matmul(b.matmul(x, 8), 4)


def written_out(b: Builder, op: str, *shape: int) -> str:
    """A number for each channel, written out for every place, between a convolution and a sum."""
    x = image(b, 4, 12, 11)
    return b.node("Add", b.node(op, b.conv(x, 4, 3, **SAME), b.constant(np.full(shape, b.normal(4, 1, 1)))), x)


def rows_shifted(b: Builder) -> str:
    return b.node("Add", b.node("Relu", b.input(3, 6)), b.constant(b.normal(3, 1)))


BRANCHES = [
    Row(
        "square Gemms that transpose their input",
        lambda b: b.node("Add", b.gemm(x := b.input(6, 6), 6, transA=1), b.gemm(x, 6, transA=1)),
        "Gemm Gemm Add",
    ),
    Row(
        "Gemms that transpose their input",
        lambda b: b.node("Add", b.gemm(x := b.input(6, 3), 3, transA=1), b.gemm(x, 3, transA=1)),
        "Gemm Gemm Add",
    ),
    Row(
        "MatMul by a batch of matrices",
        lambda b: b.node("Add", b.node("MatMul", x := b.input(2, 5, 6), b.constant(b.normal(2, 6, 6))), x),
        "MatMul Add",
    ),
    Row(
        "Gemm with another bias for each row, in a branch",
        lambda b: b.node("Add", b.gemm(x := b.input(3, 6), 6, (3, -1)), x),
        "Gemm Add",
    ),
    Row("one output channel for all", lambda b: both(b, image(b), first=point(), second=point(out=1)), "Conv Conv Add"),
    Row(
        "one output place for all",
        lambda b: both(b, image(b), first=point(), second={"kernel": (7, 6)}),
        "Conv Conv Add",
    ),
    Row(
        "a convolution and a product of one tensor",
        lambda b: b.node("Add", b.conv(x := image(b), 4, 1), b.matmul(x, 6)),
        "Conv MatMul Add",
    ),
    Row("free sizes, SAME with stride", lambda b: sized(b, "H", "W", stride=2, mode="SAME_UPPER"), "Conv Conv Add"),
    Row(
        "scaled along the height",
        lambda b: b.node("Add", b.per_channel("Mul", x := image(b), b.normal(7), axis=2), b.conv(x, 4, 1)),
        "Mul Conv Add",
    ),
    Row(
        "scaled place by place",
        lambda b: b.node("Add", b.node("Mul", x := image(b), b.constant(b.normal(4, 7, 6))), b.conv(x, 4, 1)),
        "Mul Conv Add",
    ),
    Row(
        "scaled along an axis as long as the channels",
        lambda b: b.node(
            "Add", b.node("Mul", x := image(b, 4, 4, 5), b.constant(b.normal(1, 1, 4, 1))), b.conv(x, 4, 1)
        ),
        "Mul Conv Add",
    ),
    Row("RepVGG", lambda b: repvgg(b, image(b)), "Conv"),
    Row("RepVGG with biases", lambda b: repvgg(b, image(b), bias=True), "Conv"),
    Row("RepVGG with stride", lambda b: repvgg(b, image(b), stride=2), "Conv"),
    Row("three blocks", lambda b: repvgg(b, b.node("Relu", repvgg(b, repvgg(b, image(b))))), "Conv Conv Relu Conv"),
    Row("a convolution and its input", lambda b: b.node("Add", b.conv(x := image(b), 4, 3, **SAME), x), "Conv"),
    Row("its input first", lambda b: b.node("Add", x := image(b), b.conv(x, 4, 3, **SAME)), "Conv"),
    Row("its input taken off", lambda b: b.node("Sub", b.conv(x := image(b), 4, 3, **SAME), x), "Conv"),
    Row("taken off its input", lambda b: b.node("Sub", x := image(b), b.conv(x, 4, 3, **SAME)), "Conv"),
    Row("twice", lambda b: b.node("Add", y := b.conv(image(b), 4, 3, **SAME), y), "Conv"),
    Row("scaled, written out for every place", lambda b: written_out(b, "Mul", 1, 4, 12, 11), "Conv"),
    Row("shifted, written out for every place", lambda b: written_out(b, "Add", 4, 12, 11), "Conv"),
    Row("divided, written out for every place and sample", lambda b: written_out(b, "Div", 2, 4, 12, 11), "Conv"),
    Row(
        "a LeakyRelu with a slope of one",
        lambda b: b.node("Add", b.node("LeakyRelu", b.conv(x := image(b), 4, 3, **SAME), alpha=1.0), x),
        "Conv",
    ),
    Row(
        "a LeakyRelu with another slope",
        lambda b: b.node("Add", b.node("LeakyRelu", b.conv(x := image(b), 4, 3, **SAME), alpha=0.999), x),
        "Conv LeakyRelu Add",
    ),
    Row("negated", lambda b: b.node("Add", b.node("Neg", b.conv(x := image(b), 4, 1)), x), "Conv"),
    Row(
        "scaled input",
        lambda b: b.node("Add", b.per_channel("Mul", x := image(b), b.normal(4)), b.conv(x, 4, 1)),
        "Conv",
    ),
    Row(
        "Sum of four",
        lambda b: b.node("Sum", x := image(b), b.conv(x, 4, 3, **SAME), b.conv(x, 4, 1), b.bn(x)),
        "Conv",
    ),
    Row("Mean", lambda b: b.node("Mean", x := image(b), b.conv(x, 4, 3, **SAME), b.conv(x, 4, 1)), "Conv"),
    Row("token mixer", token_mixer, "Conv"),
    Row("diverse branch block", diverse, "Conv"),
    Row(
        "a pool that counts padding",
        lambda b: b.node("Add", pool(b, x := image(b), count_include_pad=1), b.conv(x, 4, 3, **SAME)),
        "Conv",
    ),
    Row(
        "a pool that does not",
        lambda b: b.node("Add", pool(b, x := image(b)), b.conv(x, 4, 3, **SAME)),
        "AveragePool Conv Add",
    ),
    Row(
        "a pool without padding",
        lambda b: b.node(
            "Add",
            b.node("AveragePool", x := image(b), kernel_shape=[3, 3], strides=[2, 2]),
            b.conv(x, 4, 3, strides=[2, 2]),
        ),
        "Conv",
    ),
    Row(
        "a pool that rounds up",
        lambda b: b.node(
            "Add",
            b.node("AveragePool", x := image(b, 4, 7, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
            b.conv(x, 4, 3, strides=[2, 2]),
        ),
        "AveragePool Conv Add",
        opset=19,
    ),
    Row("BN behind the sum", lambda b: b.bn(both(b, image(b), first=wide(), second=point())), "Conv"),
    Row("other numbers of channels", lambda b: both(b, image(b, 3), first=wide(out=5), second=point(out=5)), "Conv"),
    Row("two groups and one", lambda b: both(b, image(b), first=wide(group=2), second=point()), "Conv"),
    Row("two groups and four", lambda b: both(b, image(b), first=wide(group=2), second=point(group=4)), "Conv"),
    Row("depthwise", lambda b: both(b, image(b), first=wide(group=4), second=point(group=4)), "Conv"),
    Row(
        "depthwise with a multiplier",
        lambda b: both(b, image(b), first=wide(group=4, out=8), second=point(group=4, out=8)),
        "Conv",
    ),
    Row("5x5 and 3x3", lambda b: both(b, image(b), first={"kernel": (5,), "pads": [2] * 4}, second=wide()), "Conv"),
    Row("dilated", lambda b: both(b, image(b), first=wide(dilations=[2, 2], pads=[2] * 4), second=point()), "Conv"),
    Row(
        "dilated by two and by one",
        lambda b: both(b, image(b), first=wide(group=4, dilations=[2, 2], pads=[2] * 4), second=wide(group=4)),
        "Conv",
    ),
    Row(
        "a row and a column",
        lambda b: both(
            b, image(b), first={"kernel": (1, 3), "pads": [0, 1, 0, 1]}, second={"kernel": (3, 1), "pads": [1, 0, 1, 0]}
        ),
        "Conv",
    ),
    Row(
        "even kernel", lambda b: both(b, image(b), first={"kernel": (2,), "pads": [0, 0, 1, 1]}, second=point()), "Conv"
    ),
    Row(
        "even kernel, padded in front",
        lambda b: both(b, image(b), first={"kernel": (2,), "pads": [1, 1, 0, 0]}, second=point()),
        "Conv",
    ),
    Row("both unpadded", lambda b: both(b, image(b), first={"kernel": (3,)}, second={"kernel": (3,)}), "Conv"),
    Row(
        "unpadded with stride",
        lambda b: both(b, image(b, 4, 8, 6), first={"kernel": (2,), "strides": [2, 2]}, second=point(strides=[2, 2])),
        "Conv",
    ),
    Row("SAME_UPPER", lambda b: sized(b, 7, 6, stride=1, mode="SAME_UPPER"), "Conv"),
    Row("SAME_UPPER with stride", lambda b: sized(b, 7, 6, stride=2, mode="SAME_UPPER"), "Conv"),
    Row("SAME_LOWER with stride", lambda b: sized(b, 8, 9, stride=2, mode="SAME_LOWER"), "Conv"),
    Row("VALID", lambda b: both(b, image(b), first=point(auto_pad="VALID"), second=point()), "Conv"),
    Row("free sizes", lambda b: sized(b, "H", "W", stride=1), "Conv"),
    Row("free sizes with stride", lambda b: sized(b, "H", "W", stride=2), "Conv"),
    Row("free sizes, SAME", lambda b: sized(b, "H", "W", stride=1, mode="SAME_UPPER"), "Conv"),
    Row("one axis", lambda b: both(b, image(b, 4, 9), first={"kernel": (3,), "pads": [1, 1]}, second=point()), "Conv"),
    Row(
        "three axes",
        lambda b: both(b, image(b, 4, 5, 4, 3), first={"kernel": (3,), "pads": [1] * 6}, second=point()),
        "Conv",
    ),
    Row("shared weights", shared_weights, "Conv"),
    Row("opset 6", lambda b: both(b, image(b), first=wide(), second=point()), "Conv", opset=6, ir=3),
    Row("opset 22", lambda b: repvgg(b, image(b)), "Conv", opset=22, ir=10),
    Row("two classifiers", heads, "Gemm"),
    Row("Gemm and its input", lambda b: b.node("Add", b.gemm(x := b.input(3, 6), 6), x), "Gemm"),
    Row(
        "Gemm scaled",
        lambda b: b.node("Add", b.gemm(x := b.input(3, 6), 6, alpha=0.5, beta=2.0), b.gemm(x, 6, None, transB=1)),
        "Gemm",
    ),
    *(
        Row(
            f"MatMuls with biases, opset {opset}",
            lambda b: b.node("Add", b.matmul(x := b.input(2, 5, 6), 6, True), b.matmul(x, 6, True)),
            "MatMul Add",
            opset=opset,
        )
        for opset in (6, 17)
    ),
    Row("MatMuls by matrices that are computed", computed_weights, "MatMul"),
    Row(
        "MatMul behind MatMul, by matrices that are computed",
        lambda b: b.node(
            "MatMul",
            b.node("MatMul", b.input(2, 5, 6), b.node("Transpose", b.constant(b.normal(8, 6)))),
            b.node("Transpose", b.constant(b.normal(3, 8))),
        ),
        "MatMul",
    ),
    Row("MatMul and its input", lambda b: b.node("Add", b.matmul(x := b.input(2, 5, 6), 6), x), "MatMul"),
    Row(
        "MatMuls from the left",
        lambda b: b.node("Add", on_the_left(b, x := b.input(2, 5, 6), 3), on_the_left(b, x, 3)),
        "MatMul",
    ),
    Row(
        "MatMuls from the left, square",
        lambda b: b.node("Sub", on_the_left(b, x := b.input(5, 5), 5), on_the_left(b, x, 5)),
        "MatMul",
    ),
    Row(
        "MatMul from the left and its input",
        lambda b: b.node("Add", x := b.input(2, 3, 5, 6), on_the_left(b, x, 5)),
        "MatMul",
    ),
    Row(
        "MatMuls from the left with biases and a scale",
        lambda b: b.node(
            "Sum",
            on_the_left(b, x := b.input(2, 5, 6), 5, True),
            on_the_left(b, x, 5, True),
            b.per_channel("Mul", x, b.normal(5)),
        ),
        "MatMul Add",
    ),
    Row("MatMuls from both sides", mixed, "MatMul MatMul Add"),
    Row(
        "MatMul from the left, scaled along the last axis",
        lambda b: b.node("Add", on_the_left(b, x := b.input(2, 5, 6), 5), b.per_channel("Mul", x, b.normal(6), 2)),
        "MatMul Mul Add",
    ),
    Row(
        "MatMul from the left by a batch of matrices",
        lambda b: b.node("Add", b.node("MatMul", b.constant(b.normal(2, 5, 5)), x := b.input(2, 5, 6)), x),
        "MatMul Add",
    ),
    Row("MatMul and Gemm", lambda b: b.node("Add", b.matmul(x := b.input(5, 6), 3), b.gemm(x, 3)), "Gemm"),
    Row("Relu on the way", lambda b: b.node("Add", b.node("Relu", b.conv(x := image(b), 4, 1)), x), "Conv Relu Add"),
    Row("of two tensors", lambda b: b.node("Add", b.conv(image(b), 4, 1), b.conv(image(b), 4, 1)), "Conv Conv Add"),
    Row(
        "a branch that is read elsewhere",
        lambda b: b.node("Tanh", y := b.conv(x := image(b), 4, 1)) and b.node("Add", y, x),
        "Conv Tanh Add",
    ),
    Row(
        "other strides",
        lambda b: both(b, image(b, 4, 1, 1), first=wide(strides=[2, 2]), second=point()),
        "Conv Conv Add",
    ),
    Row(
        "scaled along another axis",
        lambda b: b.node("Add", b.per_channel("Mul", x := image(b), b.normal(6), axis=3), b.conv(x, 4, 1)),
        "Mul Conv Add",
    ),
    Row(
        "a shift in front of padding",
        lambda b: b.node("Add", b.conv(b.bn(x := b.node("Relu", image(b))), 4, 3, **SAME), x),
        "Relu BatchNormalization Conv Add",
    ),
    Row("a shift in front of no padding", lambda b: b.node("Add", b.conv(b.bn(x := image(b)), 4, 1), x), "Conv"),
    Row(
        "weights of another type",
        lambda b: b.node("Add", b.node("Cast", b.conv(x := image(b), 4, 1), to=1), b.node("Cast", x, to=1)),
        "Conv Cast Cast Add",
    ),
]

CHAINS = [
    Row(
        "3x3 behind 3x3 with stride, sizes not known",
        lambda b: b.conv(b.conv(image(b, 2, "H", "W"), 8, 3, strides=[2, 2]), 2, 1, strides=[2, 2]),
        "Conv Conv",
    ),
    Row("what the second does not read", lambda b: b.conv(b.conv(image(b, 4, 9), 8, 1), 3, 1, strides=[5]), "Conv"),
    Row("1x1 behind 3x3", lambda b: b.conv(b.conv(image(b), 8, 3, **SAME), 3, 1), "Conv"),
    Row("1x1 behind 3x3, BN between", lambda b: b.conv(b.bn(b.conv(image(b), 8, 3, **SAME)), 3, 1), "Conv"),
    Row("3x3 behind 1x1", lambda b: b.conv(b.conv(image(b), 8, 1), 3, 3), "Conv"),
    Row(
        "padded 3x3 behind 1x1 without bias", lambda b: b.conv(b.conv(image(b), 8, 1, bias=False), 3, 3, **SAME), "Conv"
    ),
    Row("padded 3x3 behind 1x1 with bias", lambda b: b.conv(b.conv(image(b), 8, 1), 3, 3, **SAME), "Conv Conv"),
    Row("unpadded 3x3 behind padded 3x3", lambda b: b.conv(b.conv(image(b, 2), 8, 3, **SAME), 2, 3), "Conv"),
    Row("padded 3x3 behind 3x3", lambda b: b.conv(b.conv(image(b), 8, 3, bias=False), 3, 3, **SAME), "Conv Conv"),
    Row("1x1 behind 1x1", lambda b: b.conv(b.conv(image(b), 8, 1), 3, 1), "Conv"),
    Row("three", lambda b: b.conv(b.conv(b.conv(image(b), 8, 1), 8, 1), 3, 1), "Conv"),
    Row(
        "1x1 behind 1x1, a LeakyRelu with a slope of one between",
        lambda b: b.conv(b.node("LeakyRelu", b.bn(b.conv(image(b), 8, 1)), alpha=1.0), 3, 1),
        "Conv",
    ),
    Row(
        "stride behind stride",
        lambda b: b.conv(b.conv(image(b, 2), 8, 1, strides=[2, 2]), 2, 2, strides=[2, 2]),
        "Conv",
    ),
    Row(
        "1x1 with stride behind 3x3 with stride",
        lambda b: b.conv(b.conv(image(b, 2), 8, 3, strides=[2, 1]), 2, 1, strides=[1, 3]),
        "Conv",
    ),
    Row(
        "padded 2x2 behind 1x1 with stride",
        lambda b: b.conv(b.conv(image(b, 2), 8, 1, bias=False, strides=[2, 2]), 2, 2, **SAME),
        "Conv",
    ),
    Row("dilated behind 1x1", lambda b: b.conv(b.conv(image(b), 8, 1), 3, 2, dilations=[2, 3]), "Conv"),
    Row("free sizes", lambda b: b.conv(b.conv(image(b, 4, "H", "W"), 8, 3, **SAME), 3, 1), "Conv"),
    Row("3x3 behind 1x1, free sizes", lambda b: b.conv(b.conv(image(b, 4, "H", "W"), 8, 1), 3, 3), "Conv"),
    Row("groups", lambda b: b.conv(b.conv(image(b), 8, 1, group=2), 6, 1, group=2), "Conv"),
    Row("groups behind more groups", lambda b: b.conv(b.conv(image(b), 8, 1, group=4), 6, 1, group=2), "Conv"),
    Row(
        "depthwise and pointwise",
        lambda b: b.conv(b.conv(image(b, 32, 14, 14), 32, 3, group=32, **SAME), 32, 1),
        "Conv Conv",
    ),
    Row("expanding", lambda b: b.conv(b.conv(image(b, 32), 4, 1), 32, 1), "Conv Conv"),
    Row(
        "branches, and 1x1 behind",
        lambda b: b.conv(both(b, image(b), first=wide(out=8), second=point(out=8)), 3, 1),
        "Conv",
    ),
    Row("Pad in front", lambda b: b.conv(zeros(b, image(b), 1, 0, 2, 1), 5, 3), "Conv"),
    Row("Pad in front of what pads", lambda b: b.conv(zeros(b, image(b), 1, 0, 2, 1), 5, 3, **SAME), "Conv"),
    Row(
        "Pad in front, opset 10",
        lambda b: b.conv(b.node("Pad", image(b), pads=[0, 0, 1, 1, 0, 0, 1, 1]), 5, 3),
        "Conv",
        opset=10,
    ),
    Row(
        "Pad of two axes in front",
        lambda b: b.conv(b.node("Pad", image(b), b.constant([1, 0, 2, 1]), "", b.constant([-1, 2])), 5, 3),
        "Conv",
        opset=18,
    ),
    Row(
        "Pad of the channel axis alone",
        lambda b: b.conv(b.node("Pad", image(b), b.constant([1, 1]), "", b.constant([1])), 5, 3),
        "Pad Conv",
        opset=18,
    ),
    *(
        Row(
            f"Dropout at inference, {channels} channels, opset {opset}",
            partial(with_dropout, channels),
            "Conv",
            opset=opset,
        )
        for opset, channels in ((6, 4), (10, 20), (17, 20))
    ),
    Row("Pad with ones", lambda b: b.conv(zeros(b, image(b), 1, 1, 1, 1, value=1.0), 5, 3), "Pad Conv"),
    Row(
        "Pad of channels",
        lambda b: b.conv(b.node("Pad", image(b), b.constant([0, 1, 0, 0, 0, 1, 0, 0])), 5, 3),
        "Pad Conv",
    ),
    Row(
        "Pad by reflection",
        lambda b: b.conv(b.node("Pad", image(b), b.constant([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect"), 5, 3),
        "Pad Conv",
    ),
    Row(
        "Pad of a long kernel",
        lambda b: b.conv(b.node("Pad", image(b, 4, 70), b.constant([0, 0, 31, 0, 0, 32])), 5, 64),
        "Pad Conv",
    ),
    Row(
        "Pad behind a shift",
        lambda b: b.conv(zeros(b, b.bn(b.node("Relu", image(b))), 1, 1, 1, 1), 5, 3),
        "Relu BatchNormalization Conv",
    ),
    Row("read elsewhere", lambda b: b.node("Tanh", y := b.conv(image(b), 8, 1)) and b.conv(y, 3, 1), "Conv Tanh Conv"),
    Row("one axis", lambda b: b.conv(b.conv(image(b, 4, 9), 8, 3, pads=[1, 1]), 3, 1), "Conv"),
    Row("Gemm behind Gemm", lambda b: b.gemm(b.gemm(b.input(3, 6), 8, transB=1), 5, alpha=0.5), "Gemm"),
    Row(
        "MatMul behind MatMul, from the left",
        lambda b: on_the_left(b, on_the_left(b, b.input(2, 6, 4), 8, True), 5, True),
        "MatMul Add",
    ),
    Row(
        "MatMul branches from the left behind a BN and in front of a Mul",
        lambda b: b.per_channel(
            "Mul", b.node("Add", on_the_left(b, x := b.bn(b.node("Relu", b.input(2, 6, 4))), 6, True), x), b.normal(6)
        ),
        "Relu MatMul Add",
    ),
    Row(
        "MatMul from the left behind one from the right",
        lambda b: on_the_left(b, b.matmul(b.input(2, 6, 4), 3), 2),
        "MatMul MatMul",
    ),
    Row("MatMul behind MatMul", lambda b: b.matmul(b.matmul(b.input(2, 4, 6), 8, True), 5, True), "MatMul Add"),
    Row(
        "MatMul and bias, three times",
        lambda b: b.matmul(b.matmul(b.matmul(b.input(2, 4, 6), 8, True), 8, True), 5, True),
        "MatMul Add",
    ),
    Row("twice MatMul branches with biases", lambda b: residual(b, residual(b, b.input(2, 4, 6))), "MatMul Add"),
    Row(
        "MatMul branches behind a BN and in front of a Mul",
        lambda b: b.per_channel("Mul", residual(b, b.node("Relu", b.input(2, 4, 6))), b.normal(6), axis=2),
        "Relu MatMul Add",
    ),
    Row("50 in a row", lambda b: stacked(b, image(b), 50), "Conv"),
    Row(
        "1x1 with stride behind 3x3 with stride, free sizes",
        lambda b: b.conv(b.conv(image(b, 4, "H", "W"), 8, 3, strides=[2, 2]), 2, 1),
        "Conv",
    ),
    Row(
        "a bias of zeros in front of padding",
        lambda b: b.conv(
            b.node("Conv", image(b), b.constant(b.normal(8, 4, 1, 1)), b.constant(np.zeros(8))), 3, 3, **SAME
        ),
        "Conv",
    ),
    Row(
        "a shift in front of zeros that no window sees",
        lambda b: b.conv(
            b.node("Pad", b.conv(image(b, 4, 7), 4, 1), b.constant([0, 0, 0, 0, 0, 1])), 4, 1, strides=[3]
        ),
        "Conv",
    ),
    Row(
        "a shift of each row in front of two Gemm",
        lambda b: b.gemm(b.gemm(b.node("Add", b.input(3, 6), b.constant(b.normal(3, 1))), 8), 5),
        "Gemm",
    ),
    Row(
        "a shift of each row between two Gemm",
        lambda b: b.gemm(b.node("Mul", b.gemm(rows_shifted(b), 8), b.constant(b.normal(8))), 5),
        "Relu Gemm",
    ),
    Row(
        "a shift of each row in front of two MatMul",
        lambda b: b.matmul(b.matmul(b.node("Add", b.input(2, 4, 6), b.constant(b.normal(4, 1))), 8, True), 5, True),
        "MatMul Add",
    ),
    Row(
        "a scale of each row in front of two MatMul",
        lambda b: b.conv(twice(b, b.node("Mul", b.node("Relu", b.input(2, 4, 6)), b.constant(b.normal(4, 1)))), 3, 1),
        "Relu MatMul Conv",
    ),
    *(
        Row(
            f"a BN with {zeros} channels of scale zero behind two MatMul{old}",
            lambda b, zeros=zeros: b.bn(  # type: ignore[misc]
                twice(b, b.conv(b.input(2, 4, 6), 4, 1)), gamma=[0.0] * zeros + [1.5] * (4 - zeros), mean=0.3
            ),
            "Conv MatMul Add",
            opset=opset,
        )
        for zeros in (1, 2)
        for opset, old in ((17, ""), (6, ", opset 6"))
    ),
    Row(
        "one number written out for every sample, between two convolutions",
        lambda b: b.conv(
            b.node("Mul", b.conv(b.input(3, 4, 6, 5), 8, 1), b.constant(np.full((3, 1, 1, 1), 2.5))), 5, 1
        ),
        "Conv",
    ),
    Row("Gemm with another bias for each row", lambda b: b.gemm(b.gemm(b.input(3, 6), 8, (3, -1)), 5), "Gemm Gemm"),
]


@pytest.mark.parametrize("row", [*BRANCHES, *CHAINS], ids=lambda row: row.name)
def test_what_merges_and_what_stays(row: Row) -> None:
    check(row)


def test_a_wrong_shift_of_one_row_is_seen() -> None:
    b = Builder()
    model = b.model(b.gemm(b.gemm(rows_shifted(b), 8), 5))
    found, made = solved(model)
    bias = next(tensor for tensor in made.graph.initializer if list(tensor.dims) == [3, 5])
    values = onnx.numpy_helper.to_array(bias).copy()
    values[1, 2] += 1e-9
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    proof = certified(model, made, witness_of(found.rewrite))
    assert not proof.ok
    assert {failure.kind for failure in proof.failures} == {"constant"}


def test_a_bias_along_another_axis_of_the_same_size_is_seen() -> None:
    b = Builder()
    model = b.model(b.bn(twice(b, b.conv(b.input(2, 4, 6), 4, 1)), gamma=[0.0, 1.0, 1.5, -2.0]))
    found, made = solved(model)
    bias = next(tensor for tensor in made.graph.initializer if list(tensor.dims) == [1, 4, 1])
    assert certified(model, made, witness_of(found.rewrite)).ok
    bias.dims[:] = [4]
    assert not certified(model, made, witness_of(found.rewrite)).ok


def test_the_bias_of_a_gemm_along_its_rows_is_seen() -> None:
    b = Builder()
    model = b.model(b.gemm(b.gemm(b.input(4, 6), 8), 4))
    found, made = solved(model)
    bias = next(tensor for tensor in made.graph.initializer if list(tensor.dims) == [4])
    assert certified(model, made, witness_of(found.rewrite)).ok
    bias.dims[:] = [4, 1]
    assert not certified(model, made, witness_of(found.rewrite)).ok


def test_a_dropout_that_drops_stays() -> None:
    b = Builder()
    model = b.model(b.node("Add", b.conv(image(b), 4, 3, **SAME), b.dropout("x", training=True)))
    assert not merges.find(Model(read(model)))


@pytest.mark.parametrize("row", [row for row in (*BRANCHES, *CHAINS) if row.opset >= 17], ids=lambda row: row.name)
def test_the_runtime_agrees(row: Row) -> None:
    run(row)


@pytest.mark.parametrize(
    "row", [row for row in (*BRANCHES, *CHAINS) if "free" in row.name and row.left == "Conv"], ids=lambda row: row.name
)
@pytest.mark.parametrize("size", [3, 4, 5, 8, 9])
def test_free_sizes_of_every_remainder(row: Row, size: int) -> None:
    model = row.model()
    _, made = solved(model)
    x = np.random.default_rng(size).normal(size=(2, 4, size, size + 1))
    expected, found = (Oracle(each).run({"x": x}) for each in (model, made))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-12)


def test_a_body_is_merged() -> None:
    b = Builder()
    y = repvgg(b, image(b))
    inner = list(b.nodes)
    b.nodes.clear()
    value = onnx.helper.make_tensor_value_info(y, b.type, [2, 4, 7, 6])
    body = onnx.helper.make_graph(inner, "body", [], [value])
    b.node("If", b.constant(np.array(True)), then_branch=body, else_branch=body, outputs=["o"])
    b.declare("o", 2, 4, 7, 6)
    model = b.model()
    found, made = solved(model)
    assert [[node.op_type for node in a.g.node] for a in made.graph.node[0].attribute] == [["Conv"], ["Conv"]]
    agree(model, made)
    assert certified(model, made, witness_of(found.rewrite)).ok


def test_half_precision_is_rounded_once() -> None:
    row = next(row for row in BRANCHES if row.name == "RepVGG")
    model = row.model(TensorProto.FLOAT16)
    found, made = solved(model)
    assert ops(made) == "Conv"
    assert certified(model, made, witness_of(found.rewrite)).ok
    weight = onnx.numpy_helper.to_array(made.graph.initializer[0])
    assert weight.dtype == np.float16
    exact = onnx.numpy_helper.to_array(folded(found.rewrite, exact=True).graph.initializer[0])
    np.testing.assert_array_equal(weight, exact.astype(np.float16))


def test_what_would_not_fit_half_precision_stays() -> None:
    b = Builder(type_=TensorProto.FLOAT16)
    x = image(b)
    b.node("Add", b.conv(b.per_channel("Mul", x, 600.0), 4, 1, scale=600.0), b.conv(x, 4, 3, **SAME))
    found, _ = solved(b.model())
    assert [almost.text for almost in found.almost] == ["the new weight would overflow float16"]


def test_a_shift_that_counts_as_zero_is_merged_as_it_is() -> None:
    b = Builder(type_=TensorProto.FLOAT)
    x, mean = image(b), np.array([50.0, 60.0, 70.0, 80.0])
    y = b.bn(x, gamma=0.1, beta=np.float32(0.1 * mean / np.sqrt(0.3 + 1e-5)), mean=mean, variance=0.3)
    b.node("Add", y, b.conv(x, 4, 3, **SAME))
    model = b.model()
    source = rules.as_source(next(node for node in Model(read(model)).nodes() if node.op == "BatchNormalization"))
    assert isinstance(source, Source)
    assert source.note
    found, made = solved(model)
    assert ops(made) == "Conv"
    proof = certified(model, made, witness_of(found.rewrite))
    assert proof.ok, proof.failures


@pytest.mark.parametrize(
    ("type_", "scale", "text"),
    [
        (TensorProto.FLOAT, 1e25, "overflow float32"),
        (TensorProto.FLOAT, np.nan, "overflow float32"),
        (TensorProto.FLOAT16, 1e-3, "subnormal in float16"),
    ],
)
def test_weights_that_would_not_fit_stay_apart(type_: int, scale: float, text: str) -> None:
    b = Builder(type_=type_)
    b.conv(b.conv(image(b), 8, 1, bias=False, scale=scale), 3, 1, bias=False, scale=scale)
    found, _ = solved(b.model())
    (almost,) = found.almost
    assert text in almost.text


def test_too_many_nodes_are_left_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.merges.search.LIMIT", 2)
    b = Builder()
    x = image(b)
    b.node("Sum", *(b.conv(x, 4, 1) for _ in range(3)))
    found, _ = solved(b.model())
    assert [almost.text for almost in found.almost] == ["it would take more than 2 nodes at once"]


def rows_and_columns(b: Builder, first: int, second: int) -> str:
    """A row of a depthwise kernel, and a column behind it, with biases."""
    how: Any = {"group": 4, "pads": [0, first // 2, 0, first // 2]}
    y = b.conv(image(b), 4, 1, first, **how)
    return b.conv(y, 4, second, 1, **how | {"pads": [second // 2, 0, second // 2, 0]})


def pooled(b: Builder) -> str:
    """PoolFormer: a pool against its input, behind a scale."""
    x = b.per_channel("Mul", b.node("Relu", image(b)), b.normal(4))
    return b.node("Sub", pool(b, x), x)


def read_by_a_pool(b: Builder) -> str:
    x = b.node("Relu", image(b))
    return b.node("Add", pool(b, y := b.bn(x)), y)


def scaled_on_other_axes(b: Builder) -> str:
    x = b.node("Relu", image(b))
    return b.node("Add", b.per_channel("Mul", x, b.normal(7), 2), b.per_channel("Mul", x, b.normal(6), 3))


def read_elsewhere(b: Builder) -> str:
    x = b.node("Relu", image(b))
    return b.node("Mul", b.node("Add", y := b.conv(x, 4, 1), x), y)


def of_unknown_channels(b: Builder) -> str:
    x = b.input(2, "C", "D")
    return b.node("Add", b.node("Mul", x, b.constant(2.0)), b.node("Mul", x, b.constant(3.0)))


def beside_its_input(
    op: str, *weights: int, channels: int = 4, shape: tuple[int, ...] = (), bias: int = 0, **attributes: Any
) -> Callable[[Builder], str]:
    """A convolution or product that is added to what it reads."""

    def make(b: Builder) -> str:
        x = b.input(*(shape or (2, channels, 7, 6)))
        constants = [b.constant(b.normal(*sizes)) for sizes in (weights, *[(bias,)] * bool(bias))]
        return b.node("Add", b.node(op, x, *constants, **attributes), x)

    return make


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda b: rows_and_columns(b, 3, 3), []),
        (lambda b: rows_and_columns(b, 1, 3), ["the second pads with zeros what the first shifts"]),
        (pooled, []),
        (read_by_a_pool, []),
        (scaled_on_other_axes, ["a scale or shift varies on another axis than the channels"]),
        (read_elsewhere, ["'conv' is used elsewhere too"]),
        (of_unknown_channels, ["the number of channels of 'x' is not known"]),
        # What no runtime would run.
        (beside_its_input("Conv", 4), ["conv is not a convolution of its input's rank"]),
        (beside_its_input("Conv", 6, 2, 1, 1, channels=6, group=4), ["conv is not a convolution of its input's rank"]),
        (beside_its_input("Conv", 4, 5, 1, 1), ["the channels of conv do not fit its input"]),
        (beside_its_input("Conv", 4, 4, shape=(2, 4)), ["the rank of 'x' is not known, or too small"]),
        (beside_its_input("Gemm", 6, 6, shape=(2, 5, 6)), ["gemm transposes its input"]),
        (beside_its_input("Gemm", 6, 6, shape=(2, 6), bias=7), ["gemm adds another bias to each row"]),
    ],
)
def test_what_almost_merges_is_told_and_nothing_else(make: Callable[[Builder], Any], told: list[str]) -> None:
    """Not where one node would take more multiplications, nor where none could take the others up."""
    found, _ = solved(Row("", make, "").model())
    assert [almost.text for almost in found.almost] == told


@pytest.mark.parametrize(("claimed", "constant"), [((2, 5, 7, 6), (5, 1, 1)), ((2, 4), (4,))])
def test_a_scale_that_fits_a_wrong_claim_alone_is_not_merged(
    claimed: tuple[int, ...], constant: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of channels, and of axes: the file says of what a convolution makes that it has others than it has.

    Such a claim is not believed; the merge does not rely on that.
    """
    believing = skeleton.infer_value_info
    b = Builder()
    x = image(b)
    y = b.conv(x, 4, 3, **SAME)
    b.node("Add", b.node("Mul", y, b.constant(b.normal(*constant))), b.conv(x, 4, 1))
    model = b.model()
    model.graph.value_info.append(onnx.helper.make_tensor_value_info(y, b.type, claimed))
    assert not merges.find(Model(read(model)))
    monkeypatch.setattr(skeleton, "infer_value_info", lambda proto, declared=True: believing(proto))
    found = merges.find(Model(read(model)))
    assert not found
    assert [one.text for one in found.almost] == ["a scale or shift varies on another axis than the channels"]


def test_nodes_keep_their_labels_when_others_leave() -> None:
    """The unnamed node that writes `q` is `q:q` beside a node of that name, also when that one is merged away."""
    b = Builder()
    x = image(b)
    b.node("Conv", x, b.constant(b.normal(4, 4, 1, 1)), name="q", outputs=["r"])
    y = b.node("Relu", b.node("Add", "r", b.conv(x, 4, 3, **SAME)))
    slots = [b.constant(b.rng.uniform(0.5, 2, 4), what) for what in ("gamma", "beta", "mean", "variance")]
    b.nodes.append(onnx.helper.make_node("BatchNormalization", [y, *slots], ["q"]))
    b.conv("q", 3, 1)
    found, made = solved(b.model(), Wishes(keep=("q:q",)))
    assert found.rewrite.merges
    assert "BatchNormalization" in ops(made)
    assert [(o.node.label, o.folded) for o in found.outcomes] == [("q:q", False)]


@pytest.mark.parametrize("row", [row for row in BRANCHES if row.name in ("RepVGG", "Sum of four", "token mixer")])
@pytest.mark.parametrize("seed", range(4))
def test_nodes_in_any_order(row: Row, seed: int) -> None:
    """What stands behind its reader is not merged, or is; the result is the same."""
    model = row.model()
    nodes = list(model.graph.node)
    np.random.default_rng(seed).shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    found, made = solved(model)
    agree(model, made)
    proof = certified(model, made, witness_of(found.rewrite))
    assert proof.ok, proof.failures


def test_reports_name_nodes_of_the_original() -> None:
    b = Builder(type_=TensorProto.FLOAT)
    x = image(b)
    y = b.node("Add", b.conv(x, 4, 1), b.conv(x, 4, 3, **SAME))
    b.bn(b.node("MaxPool", y, kernel_shape=[2, 2]), gamma=[1, 2, 3, 4])
    for node in b.nodes[:3]:
        node.name = ""
    result = bnfold.explain(b.model())
    (affine,) = result.affines
    assert affine.into == ("conv2",)
    assert affine.into_ops == ("Conv",)
    assert [merge.into for merge in result.merges] == ["conv2"]


# --------------------------------------------------------------------------------------------------- the user's wishes


def test_no_merge() -> None:
    model = next(row for row in BRANCHES if row.name == "RepVGG").model()
    result = bnfold.optimize(model, merge=False, verify=False)
    assert result.proto is not None
    assert "Add" in ops(result.proto)
    assert not result.merges


def test_what_is_kept_is_not_merged() -> None:
    b = Builder()
    repvgg(b, image(b))
    model = b.model()
    result = bnfold.optimize(model, keep=["conv2"], verify=False)
    assert result.proto is not None
    assert "conv2" in {node.name for node in result.proto.graph.node}
    assert not result.warnings


def test_the_report_says_what_was_merged_and_what_almost() -> None:
    b = Builder()
    x = image(b)
    y = b.node("Relu", repvgg(b, x))
    padded = b.conv(b.bn(y), 4, 3, name="padded", **SAME)
    b.node("Add", padded, y, name="almost")
    result = bnfold.explain(b.model())
    merged, almost = result.merges
    assert (merged.status, merged.root, merged.into, merged.op) == ("merged", "add2", "conv", "Conv")
    assert set(merged.nodes) == {"conv", "bn", "conv2", "bn2", "bn3", "add", "add2"}
    assert (almost.status, almost.root) == ("kept", "almost")
    assert "pads with zeros" in almost.reason
    ways = {affine.node: (affine.status, affine.way, affine.into) for affine in result.affines}
    assert ways["bn3"] == ("folded", "merge", ("conv",))


def test_a_merge_that_is_wrong_is_dropped_and_the_rest_written(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder(type_=TensorProto.FLOAT)
    y = b.node("Relu", repvgg(b, image(b)))
    repvgg(b, y)
    right = merges._merge

    def wrong(found: Any) -> Any:
        merge = right(found)
        if found.root.label != "add2":
            return merge
        weight = next(edit for edit in merge.edits if isinstance(edit, NewConstant))
        spoilt = replace(weight, values=lambda *rows: weight.rows(*rows) * 1.01)
        return replace(merge, edits=tuple(spoilt if edit is weight else edit for edit in merge.edits))

    monkeypatch.setattr(merges, "_merge", wrong)
    result = bnfold.optimize(b.model(), samples=1)
    assert result.proto is not None
    assert result.status == "verified"
    assert [merge.root for merge in result.merges if merge.status == "merged"] == ["add", "add4"]
    assert any("add2" in warning for warning in result.warnings)


# ------------------------------------------------------------------------------------------------------ the certificate


def forged(**changes: Any) -> Callable[[Witness], Witness]:
    def forge(witness: Witness) -> Witness:
        (graph,) = witness.graphs
        ((end, merged),) = graph.merged.items()
        return replace(
            witness,
            graphs=(
                replace(
                    graph,
                    merged={
                        changes.get("end", end): replace(
                            merged, **{name: change(merged) for name, change in changes.items() if name != "end"}
                        )
                    },
                ),
            ),
        )

    return forge


FORGERIES: dict[str, Callable[[Witness], Witness]] = {
    "a member is missing": forged(members=lambda merged: merged.members[1:]),
    "the last one is missing": forged(members=lambda merged: merged.members[:-1]),
    "a member is no node": forged(members=lambda merged: (*merged.members, 99)),
    "a member is named twice": forged(members=lambda merged: (*merged.members, merged.members[0])),
    "another one was kept": forged(kept=lambda merged: merged.members[1]),
    "what was kept is no member": forged(kept=lambda merged: 99),
    "it ends elsewhere": forged(end=3),
    "nothing was merged": lambda witness: replace(witness, graphs=(replace(witness.graphs[0], merged={}),)),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_witness_is_refused(forgery: str) -> None:
    b = Builder()
    b.node("Tanh", repvgg(b, b.node("Relu", image(b))))
    model = b.model()
    found, made = solved(model)
    assert not certified(model, made, FORGERIES[forgery](witness_of(found.rewrite))).ok


def ints(model: onnx.ModelProto, name: str) -> Any:
    return next(a for node in model.graph.node for a in node.attribute if a.name == name).ints


def moved(values: Sequence[int]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        ints(model, "pads")[:] = values

    return change


def rewired(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Conv").input[0] = "x"


def strided(model: onnx.ModelProto) -> None:
    ints(model, "strides")[0] = 2


def no_bias(model: onnx.ModelProto) -> None:
    del next(node for node in model.graph.node if node.op_type == "Conv").input[2]


SPOILT: dict[str, Callable[[onnx.ModelProto], None]] = {
    "a weight by a millionth": spoilt(1, "Conv", 1e-6),
    "a weight by 1e-12": spoilt(1, "Conv", 1e-12),
    "the bias by 1e-12": spoilt(2, "Conv", 1e-12),
    "pads the other way round": moved([0, 2, 2, 0]),
    "strides": strided,
    "another input": rewired,
    "no bias": no_bias,
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_the_certificate_sees_a_wrong_merge(spoil: str) -> None:
    b = Builder()
    b.node("Tanh", repvgg(b, b.node("Relu", image(b, 4, 7, 7))))
    model = b.model()
    found, made = solved(model)
    assert certified(model, made, witness_of(found.rewrite)).ok
    SPOILT[spoil](made)
    assert not certified(model, made, witness_of(found.rewrite)).ok


def test_a_merged_tensor_that_a_body_reads_stays() -> None:
    b = Builder()
    x = image(b)
    y = b.conv(x, 4, 1, name="inner")
    total = b.node("Add", y, x)
    value = onnx.helper.make_tensor_value_info("o", b.type, None)
    body = onnx.helper.make_graph([onnx.helper.make_node("Neg", [y], ["o"])], "body", [], [value])
    b.node("If", b.constant(np.array(True)), then_branch=body, else_branch=body)
    found, _ = solved(b.model())
    assert total
    assert not found.rewrite.merges


@pytest.mark.parametrize("closed", [False, True], ids=["into a Conv", "of scales, which left"])
def test_the_certificate_sees_a_node_that_is_no_identity(closed: bool) -> None:
    """As if a Dropout that drops, or a LeakyRelu that bends, had been taken for one that does nothing."""
    b = Builder()
    x = image(b)
    y = b.node("LeakyRelu", b.dropout(x, training=False), alpha=1.0)
    b.conv(b.node("Add", b.bn(y), x), 4, 1) if closed else b.node("Add", b.conv(y, 4, 3, **SAME), x)
    model = b.model()
    found, made = solved(model)
    assert ops(made) == "Conv"
    witness = witness_of(found.rewrite)
    assert certified(model, made, witness).ok
    bent = onnx.ModelProto.FromString(model.SerializeToString())
    next(node for node in bent.graph.node if node.op_type == "LeakyRelu").attribute[0].f = 0.5
    assert not certified(bent, made, witness).ok
    mode = next(node for node in model.graph.node if node.op_type == "Dropout").input[2]
    next(t for t in model.graph.initializer if t.name == mode).CopyFrom(
        onnx.numpy_helper.from_array(np.array(True), mode)
    )
    assert not certified(model, made, witness).ok


def test_the_witness_of_a_merge_behind_a_merge_names_all_nodes() -> None:
    row = next(row for row in CHAINS if row.name == "branches, and 1x1 behind")
    found, _ = solved(row.model())
    (graph,) = witness_of(found.rewrite).graphs
    assert graph.merged == {3: Merged(0, (0, 1, 2, 3))}


# ------------------------------------------------------------------------------------------------------- random graphs


def scribbled(seed: int) -> onnx.ModelProto:
    """A random graph of linear nodes, few of which have a shape of their own, with a nonlinear one now and then."""
    b = Builder(seed=seed)
    rng = np.random.default_rng(seed)
    sizes: Sequence[int] = [(6,), (5, 7), (4, 3, 4)][int(rng.choice(3, p=[0.2, 0.7, 0.1]))]
    pool = [b.input(2, 4, *sizes)]
    for _ in range(int(rng.integers(4, 14))):
        x = str(rng.choice(pool[-4:]))
        pool.append(_scribble(b, rng, x, [name for name in pool if b.shape(name) == b.shape(x)]))
    return b.model()


def _scribble(b: Builder, rng: np.random.Generator, x: str, alike: list[str]) -> str:
    kind, shape = rng.random(), b.shape(x)
    other = str(rng.choice(alike))
    if kind < 0.4:
        kernel, rank = int(rng.integers(1, 4)), len(shape) - 2
        dilation, stride = int(rng.integers(1, 3)), int(rng.choice([1, 1, 1, 2]))
        total = (kernel - 1) * dilation if rng.random() < 0.8 else int(rng.integers(0, 3))
        begin = total // 2 if rng.random() < 0.7 else int(rng.integers(0, total + 1))
        if min(shape[2:]) + total <= (kernel - 1) * dilation:
            return x
        group = int(rng.choice([1, 1, 2, 4])) if shape[1] % 4 == 0 else 1
        out = 4 if rng.random() < 0.8 else 8
        how: Any = {"pads": [begin] * rank + [total - begin] * rank, "dilations": [dilation] * rank}
        if rng.random() < 0.1 and dilation == 1:
            how = {"auto_pad": str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))}
            if how["auto_pad"] == "VALID" and min(shape[2:]) < kernel:
                return x
        return b.conv(x, out, kernel, group=group, strides=[stride] * rank, bias=bool(rng.random() < 0.6), **how)
    if kind < 0.75:
        op = str(rng.choice(["Add", "Add", "Add", "Sub", "Sum", "Mean"]))
        return b.node(op, x, other) if rng.random() < 0.5 else b.node(op, other, x)
    if kind < 0.85:
        return b.bn(x)
    if kind < 0.9:
        return b.per_channel(str(rng.choice(["Mul", "Add", "Sub", "Div"])), x, b.rng.uniform(0.5, 2.0, shape[1]))
    if kind < 0.93:
        return b.node(str(rng.choice(["Neg", "Identity"])), x)
    if kind < 0.95:
        ends = [0, 0, *(int(rng.integers(0, 3)) for _ in shape[2:])]
        pads = np.array([*ends, 0, 0, *reversed(ends[2:])])
        if rng.random() < 0.5:
            return b.node("Pad", x, b.constant(pads))
        given = b.node("Shape", x)
        more = b.constant(pads + [*shape, *shape])
        y = b.node("Pad", x, b.node("Sub", more, b.node("Concat", given, given, axis=0)))
        b.declare(y, *(size + int(ends) for size, ends in zip(shape, pads.reshape(2, -1).sum(axis=0), strict=True)))
        return y
    if kind < 0.985 and len(shape) == 4 and min(shape[2:]) >= 2:
        counted, stride = int(rng.integers(2)), int(rng.integers(1, 3))
        pooled: Any = {"kernel_shape": [2, 2], "strides": [stride, stride], "count_include_pad": counted}
        return b.node("AveragePool", x, pads=[0, 0, *rng.choice([[0, 0], [1, 1]])], **pooled)
    return b.node("Relu", x)


@pytest.mark.parametrize("seed", range(int(os.environ.get("BNFOLD_FUZZ", "150"))))
def test_random_linear_graphs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever could be merged is, paying or not: the result is the same, and certified."""
    if seed % 2:
        monkeypatch.setattr("bnfold.merges.search.MARGIN", 1e9)
        monkeypatch.setattr("bnfold.merges.swapping.MARGIN", 1e9)
    model = scribbled(seed + int(os.environ.get("BNFOLD_SEED") or 0))
    found, made = solved(model)
    agree(model, made)
    proof = certified(model, made, witness_of(found.rewrite))
    assert proof.ok, proof.failures
