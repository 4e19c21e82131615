"""What the other tools' own tests try, as graphs of ours: each folds at least as far as there, and always right.

After the cases (not the code) of ONNX Runtime's graph_transform_test.cc, onnxscript's _fuse_batchnorm_test.py,
onnxoptimizer's optimizer_test.py and AIMET's test_bn_fold.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.builder import Builder
from tests.law import law

Make = Callable[[Builder], str | None]
"""Builds a graph; returns its output, or None where that is what nothing reads."""

IMAGE = (2, 3, 9, 8)


def conv_bn(bias: bool = True, empty: int = 0, **conv: Any) -> Make:
    """A Conv and a BatchNormalization, with so many optional outputs that are left out."""

    def make(b: Builder) -> str:
        b.opset = 9 if empty else b.opset  # later ones have these outputs in training only
        y = b.conv(b.input(*IMAGE), 6, 3, bias=bias, **conv)
        bn = b.bn(y)
        b.nodes[-1].output.extend([""] * empty)
        return bn

    return make


def transposed(bias: bool, **conv: Any) -> Make:
    return lambda b: b.bn(b.conv_transpose(b.input(2, 4, 5, 4), 6, 3, bias=bias, **conv))


def gemm_bn(bias: bool, **gemm: Any) -> Make:
    return lambda b: b.bn(b.gemm(b.input(3, 5), 7, bias=[7] if bias else None, **gemm))


def dynamic(what: str) -> Make:
    """The weights, or a parameter, are graph inputs."""

    def make(b: Builder) -> str:
        weight = b.input(6, 3, 3, 3, name="w") if what == "weight" else b.constant(b.normal(6, 3, 3, 3), "w")
        y = b.node("Conv", b.input(*IMAGE), weight)
        slots = [b.input(6, name=n) if n == what else b.constant(b.rng.uniform(0.5, 2, 6), n) for n in "gbmv"]
        return b.node("BatchNormalization", y, *slots, name="bn")

    return make


def matmul_bn(*between: tuple[str, dict[str, Any]]) -> Make:
    """MatMul, then these nodes, then a BatchNormalization of 4 channels."""

    def make(b: Builder) -> str:
        y = b.matmul(b.input(3, 5, 6), 4) if between else b.matmul(b.input(5, 6), 4)
        for op, attributes in between:
            y = b.reshape(y, 15, 4) if op == "Reshape" else b.node(op, y, **attributes)
        return b.bn(y)

    return make


def unsqueezed(bias: bool, negative: bool) -> Make:
    """Conv, BatchNormalization, Mul and Add by vectors that Unsqueeze gives their axes."""

    def make(b: Builder) -> str:
        y = b.bn(b.conv(b.input(*IMAGE), 6, 3, bias=bias))
        for op in ("Mul", "Add"):
            axes = (-2, -1) if negative else (1, 2)
            y = b.node(op, y, b.unsqueeze(b.constant(b.normal(6)), *axes))
        return y

    return make


def conv_and(op: str, *shape: int, image: tuple[int, ...] = (1, 5, 3, 3), left: bool = False) -> Make:
    """Conv of kernel 3 and an element-wise operator with a constant of this shape."""

    def make(b: Builder) -> str:
        y = b.conv(b.input(*image), 16, 3, bias=False)
        constant = b.constant(b.rng.uniform(0.5, 2, shape))
        return b.node(op, *((constant, y) if left else (y, constant)))

    return make


def dynamic_conv_add(b: Builder) -> str:
    """The weights are computed at run time; the bias is not."""
    weight = b.node("Sub", b.input(16, 5, 3, 3, name="m"), b.input(16, 5, 3, 3, name="n"))
    return b.node("Add", b.node("Conv", b.input(1, 5, 3, 3), weight), b.constant(b.normal(1, 16, 1, 1)))


def constant_behind_the_conv(b: Builder) -> str:
    y = b.conv(b.input(1, 5, 3, 3), 16, 3, bias=False)
    value = b.node("Constant", value_floats=[float(v) for v in b.normal(16)])
    cast = b.node("CastLike", value, y)
    return b.node("Add", y, b.reshape(cast, 16, 1, 1))


def before_conv(**conv: Any) -> Make:
    """Conv, Relu, BatchNormalization, Conv."""

    def make(b: Builder) -> str:
        y = b.node("Relu", b.conv(b.input(2, 3, 12, 11), 6, 3, bias=False))
        return b.conv(b.bn(y), 6, 3, bias=False, **conv)

    return make


def before_transposed(**conv: Any) -> Make:
    def make(b: Builder) -> str:
        y = b.node("Relu", b.conv(b.input(2, 3, 8, 7), 6, 3, bias=False))
        return b.conv_transpose(b.bn(y), 6, 3, **conv)

    return make


def before_linear(b: Builder) -> str:
    return b.gemm(b.bn(b.node("Relu", b.gemm(b.input(4, 5), 6, transB=1))), 7, transB=1)


def before_flatten(b: Builder) -> str:
    y = b.node("Relu", b.conv(b.input(2, 3, 8, 8), 4, 3, pads=[1] * 4, strides=[2, 2]))
    return b.gemm(b.node("Flatten", b.bn(y)), 5, transB=1)


def two_inputs(b: Builder) -> str:
    one = b.bn(b.conv(b.input(2, 3, 9, 9), 6, 3, bias=False, strides=[2, 2], pads=[1] * 4))
    other = b.bn(b.conv(b.input(2, 3, 17, 17), 4, 3, strides=[2, 2], pads=[1] * 4))
    other = b.conv(other, 6, 3, strides=[2, 2])
    other = b.node("AveragePool", other, kernel_shape=[2, 2], pads=[1, 1, 1, 1])
    y = b.node("MaxPool", b.node("Relu", b.node("Add", one, other)), kernel_shape=[2, 2])
    return b.gemm(b.node("Flatten", y), 3)


def every_place(b: Builder) -> str:
    """Behind a Conv; in front of one; two on one tensor, added."""
    y = b.node("Relu", b.bn(b.conv(b.input(2, 3, 12, 12), 6, 3)))
    y = b.conv(b.bn(b.node("Relu", b.conv(y, 5, 3))), 6, 3)
    y = b.conv(y, 6, 3)
    return b.gemm(b.node("Flatten", b.node("Add", b.bn(y), b.bn(y))), 4)


def depthwise(b: Builder) -> str:
    return b.node("Relu", b.bn(b.conv(b.bn(b.conv(b.input(*IMAGE), 6, 1)), 6, 3, group=6)))


def pad_between(mode: str, pads: Sequence[int], value: float = 0.0) -> Make:
    """BatchNormalization, Pad, Conv: zeros beside a shifted tensor are another thing than zeros beside the original."""

    def make(b: Builder) -> str:
        y = b.bn(b.conv(b.input(1, 5, 4, 4), 5, 1))
        slots = [b.constant(np.array(pads), "pads"), *([b.constant(value)] if mode == "constant" else [])]
        return b.conv(b.node("Pad", y, *slots, mode=mode), 16, 3)

    return make


ZERO = {"spatial zeros": [0, 0, 1, 1, 0, 0, 1, 1], "channels": [0, 1, 0, 0, 0, 1, 0, 0]}

CASES: dict[str, tuple[Make, int]] = {
    # ONNX Runtime
    "conv, no bias, an output left out": (conv_bn(bias=False, empty=1), 0),
    "conv, four outputs left out": (conv_bn(empty=4), 0),
    "conv, bn, mul, add, unsqueeze": (unsqueezed(bias=True, negative=False), 0),
    "the same with negative axes": (unsqueezed(bias=True, negative=True), 0),
    "the same without a bias": (unsqueezed(bias=False, negative=False), 0),
    "conv and mul": (conv_and("Mul", 16, 1, 1), 0),
    "conv and add": (conv_and("Add", 1, 16, 1, 1), 0),
    "conv and mul by one number": (conv_and("Mul"), 0),
    "conv and div": (conv_and("Div", 16, 1, 1), 0),
    "conv and an add that enlarges the batch": (conv_and("Add", 4, 16, 1, 1), 0),
    "conv of one axis and mul": (conv_and("Mul", 16, 1, image=(1, 5, 9)), 0),
    "conv of three axes and add": (conv_and("Add", 16, 1, 1, 1, image=(1, 5, 4, 4, 4)), 0),
    "matmul, bn": (matmul_bn(), 0),
    "matmul, reshape, bn": (matmul_bn(("Reshape", {})), 0),
    "matmul, transpose, bn": (matmul_bn(("Transpose", {"perm": [0, 2, 1]})), 0),
    "matmul, sigmoid, bn": (matmul_bn(("Reshape", {}), ("Sigmoid", {})), 1),
    # onnxscript
    **{f"conv, {bias=}": (conv_bn(bias), 0) for bias in (True, False)},
    **{f"transposed conv, {bias=}": (transposed(bias), 0) for bias in (True, False)},
    **{f"gemm, {b=}, {t=}": (gemm_bn(b, transB=t), 0) for b in (True, False) for t in (0, 1)},
    "parameters that are inputs": (dynamic("m"), 1),
    "weights that are an input": (dynamic("weight"), 1),
    # onnxoptimizer
    "add of a scalar": (conv_and("Add"), 0),
    "add of one number in a vector": (conv_and("Add", 1), 0),
    "add of a constant on the left": (conv_and("Add", 16, 1, 1, left=True), 0),
    "add behind weights that are computed": (dynamic_conv_add, 0),
    "add of a constant that stands behind the conv": (constant_behind_the_conv, 0),
    "add that enlarges the width": (conv_and("Add", 3), 0),
    "add that enlarges width and height": (conv_and("Add", 16, 3, 3), 0),
    "add that enlarges everything": (conv_and("Add", 1, 16, 3, 3), 0),
    "pad of space by zeros": (pad_between("constant", ZERO["spatial zeros"]), 0),
    "pad of space by a number": (pad_between("constant", ZERO["spatial zeros"], 1.5), 0),
    "pad of channels": (pad_between("constant", ZERO["channels"]), 0),
    "pad by less than nothing": (pad_between("constant", [0, 0, -1, 0, 0, 0, 0, 0]), 0),
    "pad by reflection": (pad_between("reflect", ZERO["spatial zeros"]), 0),
    # AIMET
    "regular, in front of a conv, two on one": (every_place, 1),
    "two inputs": (two_inputs, 0),
    "behind linear": (gemm_bn(True, transB=1), 0),
    "in front of linear": (before_linear, 0),
    "in front of flatten and linear": (before_flatten, 0),
    "depthwise": (depthwise, 0),
    "behind conv of one axis": (lambda b: b.node("Relu", b.bn(b.conv(b.input(2, 5, 12), 5, 3))), 0),
    "behind a grouped conv": (conv_bn(group=3, strides=[2, 2], dilations=[2, 2], pads=[1] * 4), 0),
    "in front of a conv": (before_conv(), 0),
    "in front of a conv with stride, dilation, groups": (before_conv(strides=[2, 2], dilations=[2, 2], group=2), 0),
    "in front of a padded conv": (before_conv(pads=[1] * 4), 1),
    "behind a transposed conv with everything": (
        transposed(True, group=2, strides=[2, 2], pads=[1] * 4, output_padding=[1, 1]), 0),
    "in front of a transposed conv": (before_transposed(), 1),
    "in front of a grouped transposed conv": (before_transposed(group=2, strides=[2, 2]), 1),
}  # fmt: skip
"""By name: the graph, and how many scale-and-shift nodes are left."""


@pytest.mark.parametrize("name", CASES)
def test_what_others_test(name: str) -> None:
    make, left = CASES[name]
    b = Builder()
    output = make(b)
    law(b.model(*([output] if output else [])), left=left)
