"""Convolutions and products of one tensor, put side by side: one with all output channels, where it takes no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from bnfold.folding import Wishes
from bnfold.patch import witness_of
from tests.builder import Builder
from tests.merging import SAME, Row, certified, check, image, run, solved


def beside(b: Builder, *makers: Callable[[str], str], axis: int = 1, x: str = "") -> str:
    x = x or image(b, 4)
    return b.node("Concat", *(make(x) for make in makers), axis=axis)


def on_the_way(b: Builder) -> str:
    return beside(b, lambda x: b.node("Relu", b.conv(x, 3, 1)), lambda x: b.conv(x, 3, 1))


def with_norms(b: Builder) -> str:
    return beside(b, lambda x: b.bn(b.conv(x, 3, 1)), lambda x: b.bn(b.conv(x, 2, 1)))


def of_sums(b: Builder) -> str:
    return beside(b, lambda x: b.node("Add", b.conv(x, 4, 1), x), lambda x: b.conv(x, 3, 1))


def of_other_kernels(b: Builder) -> str:
    siblings = convs(b, (3, 3, SAME), (2, 1, {}))
    return b.node("Add", siblings, b.conv("x", 5, 3, **SAME))


def of_two(b: Builder) -> str:
    return b.node("Concat", b.conv(image(b), 3, 1), b.conv(image(b), 3, 1), axis=1)


def gemms(b: Builder) -> str:
    return beside(b, lambda x: b.gemm(x, 3), lambda x: b.gemm(x, 2, None, transB=1), x=b.input(3, 6))


def matmuls(b: Builder, axis: int = 2) -> str:
    return beside(b, lambda x: b.matmul(x, 3, axis == 2), lambda x: b.matmul(x, 3), x=b.input(2, 5, 6), axis=axis)


def from_the_left(b: Builder, x: str) -> str:
    return b.node("MatMul", b.constant(b.normal(3, 5)), x)


def matmuls_from_the_left(b: Builder) -> str:
    return beside(b, lambda x: from_the_left(b, x), lambda x: from_the_left(b, x), x=b.input(2, 5, 6))


def convs(b: Builder, *hows: tuple[int, int, dict[str, Any]], x: str = "", axis: int = 1) -> str:
    """(output channels, kernel, attributes) of each."""
    x = x or image(b, 4)
    return b.node("Concat", *(b.conv(x, out, kernel, **how) for out, kernel, how in hows), axis=axis)


SHIFTED: dict[str, Any] = {"pads": [0, 0, 2, 2]}
STRIDED: dict[str, Any] = {"strides": [2, 2], **SAME}
DILATED: dict[str, Any] = {"pads": [2, 2, 2, 2], "dilations": [2, 2]}

ROWS = [
    Row("two", lambda b: convs(b, (3, 3, SAME), (5, 3, SAME)), "Conv"),
    Row("three, one without bias", lambda b: convs(b, (3, 1, {}), (1, 1, {"bias": False}), (2, 1, {})), "Conv"),
    Row("none with bias", lambda b: convs(b, (3, 1, {"bias": False}), (1, 1, {"bias": False})), "Conv"),
    Row("axis from the end", lambda b: convs(b, (3, 1, {}), (1, 1, {}), axis=-3), "Conv"),
    Row("strides", lambda b: convs(b, *2 * [(3, 3, STRIDED)]), "Conv"),
    Row("free sizes", lambda b: convs(b, (3, 3, SAME), (5, 3, SAME), x=image(b, 4, "H", "W")), "Conv"),
    Row("one axis", lambda b: convs(b, (3, 3, {"pads": [1, 1]}), (5, 3, {"pads": [1, 1]}), x=image(b, 4, 9)), "Conv"),
    Row("BN behind each", with_norms, "Conv"),
    Row("BN behind all", lambda b: b.bn(convs(b, (3, 1, {}), (2, 1, {}))), "Conv"),
    Row("behind a BN", lambda b: convs(b, (3, 1, {}), (2, 1, {}), x=b.bn(image(b))), "Conv"),
    Row("a sum of siblings", lambda b: b.node("Add", convs(b, (3, 1, {}), (5, 1, {})), b.conv("x", 8, 1)), "Conv"),
    Row("a sum of siblings with other kernels", of_other_kernels, "Conv"),
    Row("siblings of sums", of_sums, "Conv"),
    Row("1x1 behind", lambda b: b.conv(convs(b, (3, 3, SAME), (5, 3, SAME)), 2, 1), "Conv"),
    Row("one twice", lambda b: b.node("Concat", y := b.conv(image(b), 3, 1), y, axis=1), "Conv Concat"),
    Row("3x3 and 1x1", lambda b: convs(b, (3, 3, SAME), (3, 1, {})), "Conv Conv Concat"),
    Row("windows beside each other", lambda b: convs(b, (3, 3, SAME), (3, 3, SHIFTED)), "Conv Conv Concat"),
    Row("dilated and not", lambda b: convs(b, (3, 3, SAME), (3, 3, DILATED)), "Conv Conv Concat"),
    Row("depthwise", lambda b: convs(b, *2 * [(4, 3, {"group": 4, **SAME})]), "Conv Conv Concat"),
    Row("other strides", lambda b: convs(b, (3, 3, STRIDED), (3, 1, {}), x=image(b, 4, 1, 1)), "Conv Conv Concat"),
    Row("along the height", lambda b: convs(b, (3, 1, {}), (3, 1, {}), axis=2), "Conv Conv Concat"),
    Row("along the batch", lambda b: convs(b, (3, 1, {}), (3, 1, {}), axis=0), "Conv Conv Concat"),
    Row("the tensor itself", lambda b: beside(b, lambda x: b.conv(x, 3, 1), lambda x: x), "Conv Concat"),
    Row("of two tensors", of_two, "Conv Conv Concat"),
    Row("Relu on the way", on_the_way, "Conv Relu Conv Concat"),
    Row("Gemms", gemms, "Gemm"),
    Row("MatMuls", matmuls, "MatMul Add"),
    Row("MatMuls from the left", matmuls_from_the_left, "MatMul"),
    Row("MatMuls along the rows", lambda b: matmuls(b, 1), "MatMul MatMul Concat"),
    Row("opset 6", lambda b: convs(b, (3, 3, SAME), (5, 3, SAME)), "Conv", opset=6, ir=3),
    Row("opset 22", lambda b: convs(b, (3, 3, SAME), (5, 3, SAME)), "Conv", opset=22, ir=10),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_left(row: Row) -> None:
    check(row)


@pytest.mark.parametrize("row", [row for row in ROWS if row.opset >= 17], ids=lambda row: row.name)
def test_the_runtime_agrees(row: Row) -> None:
    run(row)


def test_why_siblings_stay() -> None:
    """Where they would take more multiplications, or what stands between is no convolution."""

    def told(make: Callable[[Builder], Any]) -> list[str]:
        found, _ = solved(Row("", make, "").model())
        return [almost.text for almost in found.almost]

    assert told(lambda b: convs(b, (6, 3, SAME), (2, 1, {}))) == ["one Conv would multiply 1.29 times as often"]
    assert told(lambda b: convs(b, (3, 3, SAME), (3, 1, {}))) == ["one Conv would multiply 1.80 times as often"]
    assert told(lambda b: convs(b, *2 * [(4, 3, {"group": 4, **SAME})])) == []
    assert told(on_the_way) == []
    other = "concat works on another axis than the channels"
    assert told(lambda b: convs(b, (3, 1, {}), (3, 1, {}), axis=2)) == [other]


@pytest.mark.parametrize("keep", ["conv", "concat"])
def test_what_is_kept_stays(keep: str) -> None:
    model = Row("", lambda b: convs(b, (3, 1, {}), (2, 1, {})), "").model()
    assert solved(model, Wishes(keep=(keep,)))[1] == model


def test_an_output_stays() -> None:
    def make(b: Builder) -> tuple[str, str]:
        x = image(b)
        y = b.conv(x, 3, 1)
        return y, b.node("Concat", y, b.conv(x, 2, 1), axis=1)

    model = Row("", make, "").model()
    assert solved(model)[1] == model


def swapped(model: onnx.ModelProto) -> None:
    """The outputs of the first convolution behind those of the second."""
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    for name in conv.input[1:]:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = np.roll(onnx.numpy_helper.to_array(tensor), 3, axis=0)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def nudged(slot: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
        tensor = next(t for t in model.graph.initializer if t.name == conv.input[slot])
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.ravel()[-1] *= 1 + 1e-12
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    return change


@pytest.mark.parametrize("spoil", [swapped, nudged(1), nudged(2)])
def test_the_certificate_sees_a_wrong_merge(spoil: Callable[[onnx.ModelProto], None]) -> None:
    model = Row("", lambda b: convs(b, (3, 3, SAME), (5, 3, SAME)), "").model()
    found, made = solved(model)
    witness = witness_of(found.rewrite)
    assert certified(model, made, witness).ok
    spoil(made)
    assert not certified(model, made, witness).ok


def test_the_certificate_sees_a_wrong_axis() -> None:
    """As if outputs along another axis had been put side by side along the channels."""
    x = image(b := Builder(), 4, 6, 6)
    b.node("Concat", b.conv(x, 3, 1), b.conv(x, 3, 1), axis=1)
    model = b.model()
    found, made = solved(model)
    witness = witness_of(found.rewrite)
    model.graph.node[2].attribute[0].i = 2
    assert not certified(model, made, witness).ok
