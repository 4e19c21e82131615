"""A zero scale makes a channel constant: where another reader has no use for a constant, the affine stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bnfold.rules import contraction
from tests.beside import (
    FLOAT,
    dead_in_front,
    refused,
)
from tests.builder import Builder
from tests.law import fold, law
from tests.rows import IMAGE


def divisor(b: Builder, x: str) -> None:
    b.absorber(b.node("Div", b.node("Sigmoid", b.input(*IMAGE, name="gate")), x))


def largest(b: Builder, x: str) -> None:
    b.node("ArgMax", x, axis=2)


def smallest_backwards(b: Builder, x: str) -> None:
    b.node("MaxPool", x, outputs=["pooled", "indices"], kernel_shape=[2, 2])


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (divisor, "a divisor cannot become zero"),
        (largest, "a constant channel has no indices"),
        (smallest_backwards, "a constant channel has no indices"),
    ],
)
def test_a_channel_that_is_lost_to_another_reader(reader: Callable[[Builder, str], None], text: str) -> None:
    b = Builder()
    x = b.conv(b.input(*IMAGE), 6, 1)
    b.affine(x, "z")
    reader(b, x)
    refused(b.model(), text)


def matmul(b: Builder, x: str) -> None:
    b.matmul(b.matmul(x, 4), 5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shift", [False, True])
def test_a_channel_that_is_lost_to_a_product(axis: int, shift: bool) -> None:
    b = Builder()
    y = b.input(3, 6)
    x = b.gemm(y, 6) if axis else b.node("MatMul", b.constant(b.normal(3, 3)), y)
    lost = b.affine(x, "z", axis)
    if shift:
        b.per_channel("Add", lost, 0.5)
    matmul(b, x)
    refused(b.model(), "a channel of scale zero reaches MatMul")


def test_a_constant_channel_that_is_lost_to_a_product() -> None:
    b = Builder()
    x = b.gemm(b.input(3, 6), 6)
    dead_in_front(lambda b, x: x)(b, x)
    matmul(b, x)
    refused(b.model(), "a channel of scale zero reaches MatMul, which")


def test_a_scale_of_rows_and_columns_does_not_pass_a_product() -> None:
    b = Builder()
    matmul(b, b.node("Mul", b.input(3, 6), b.constant(b.normal(3, 6))))
    refused(b.model(), "mixes the rows and the weights of MatMul")


def test_one_shift_for_all_rows_is_moved_whatever_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contraction, "LIMIT", 1)
    b = Builder()
    b.matmul(b.affine(b.input(3, 6), "b"), 4, bias=True)
    law(b.model(), left=0)


def test_a_shift_does_not_pass_back_through_a_factor_of_zero() -> None:
    b = Builder()
    b.affine(b.affine(b.conv(b.input(*IMAGE), 6, 1), "z"), "t")
    case = fold(b.model(), keep=("mul",))
    assert case.left == 2
    assert "a factor of zero" in case.reason("zero-scale").text


def test_a_block_of_weights_has_one_scale() -> None:
    b = Builder(21, FLOAT)
    quantized = b.constant(np.array([[3, -1, 2, 5]], np.int8))
    w = b.node("DequantizeLinear", quantized, b.constant([[0.5]]), axis=1, block_size=4)
    b.affine(b.node("MatMul", b.input(3, 1), w), "p")
    refused(b.model(), "has no scales of its own")


def test_a_sum_that_became_constant_takes_no_other_shift() -> None:
    b = Builder()
    x = b.input(*IMAGE)
    y = dead_in_front(lambda b, x: x)(b, b.node("Add", b.conv(x, 6, 1), b.conv(x, 6, 1)))
    b.affine(y, "s")
    law(b.model())


@pytest.mark.parametrize(
    ("op", "attributes", "left"),
    [
        ("Abs", {}, 0),
        ("Relu", {}, 0),
        ("GlobalAveragePool", {}, 0),
        ("GlobalLpPool", {"p": 1}, 1),
        ("GlobalLpPool", {}, 1),
        ("LpPool", {"kernel_shape": [2, 2]}, 1),
        ("ReduceL1", {"axes": [2, 3]}, 1),
        ("ReduceSumSquare", {"axes": [2, 3]}, 1),
    ],
)
def test_a_channel_that_became_a_constant_in_front_of(op: str, attributes: dict[str, Any], left: int) -> None:
    """The constant of such a channel is another one behind an operator that sums powers."""
    b = Builder()
    y = b.node(op, b.conv(b.input(2, 3, 5, 4), 3, 1), **attributes)
    y = b.per_channel("Mul", y, [1.5, 0.7, 0.0])
    y = b.bn(y, gamma=[1.0, 0.0, 1.0], beta=[0.0, 0.6, 0.0], mean=0.0, variance=1.0, epsilon=0.0)
    law(b.model(b.node("Pow", y, b.constant(2.0))), left=left)
