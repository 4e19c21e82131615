"""A BatchNormalization or an operator with a constant that is no affine of channels: it stays, and says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.beside import (
    normalised,
    refused,
)
from tests.builder import Builder
from tests.rows import IMAGE


def test_parameters_of_integers() -> None:
    b = normalised()
    b.initializers[0].CopyFrom(onnx.numpy_helper.from_array(np.ones(6, np.int64), b.initializers[0].name))
    refused(b.model(), "its scale is not of a float type")


@pytest.mark.parametrize(
    ("b", "text"),
    [
        (normalised(9, outputs=3), "its statistics outputs are used"),
        (normalised(17, outputs=3), "its statistics outputs are used"),
        (normalised(shape=(6,)), "the rank of its input is not known"),
        (normalised(bias=5), "not one per channel"),
        (normalised(shape=(3, "C", 7), scale=0, bias=0, mean=0, variance=0), "not one per channel"),
        (normalised(scale=5, bias=5, mean=5, variance=5), "not one per channel"),
    ],
)
def test_a_batchnormalization_that_is_none(b: Builder, text: str) -> None:
    refused(b.model("y", *("mean",) * ("mean" in b.nodes[0].output and b.opset > 9)), text)


def test_parameters_of_two_axes() -> None:
    b = normalised()
    for tensor in b.initializers:
        tensor.dims[:] = [6, 1]
    refused(b.model(), "not one per channel")


def test_an_operand_whose_axis_lies_too_far_back() -> None:
    b = Builder(6)
    b.node("Add", b.input(*IMAGE), b.constant(b.normal(7, 5)), broadcast=1, axis=3)
    refused(b.model("add"), "enlarges the tensor")


def test_an_operand_of_a_size_that_is_not_known() -> None:
    b = Builder()
    b.node("Add", b.input("N", 5), b.constant(b.normal(3, 5)))
    refused(b.model("add"), "may enlarge the tensor")


def test_an_operand_of_one_axis_more() -> None:
    b = Builder()
    b.node("Add", b.input(5, 5), b.constant(b.normal(1, 5, 5)))
    refused(b.model("add"), "enlarges the tensor")


def test_a_factor_that_is_not_finite() -> None:
    b = Builder()
    b.node("Mul", b.input(*IMAGE), b.constant([np.inf]))
    refused(b.model(), "is not finite, or divides by zero")


@pytest.mark.parametrize("value", [1e61, -1e61, 1e-61])
@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
def test_an_operand_that_is_beyond_all_sense(op: str, value: float) -> None:
    b = Builder()
    b.node(op, b.input(*IMAGE), b.constant([value]))
    refused(b.model(), "a parameter is larger than 1e60")


@pytest.mark.parametrize("parameter", ["gamma", "beta", "mean"])
def test_a_batch_normalization_that_is_beyond_all_sense(parameter: str) -> None:
    b = Builder()
    x = b.input(*IMAGE)
    channels = b.shape(x)[1]
    given: dict[str, Any] = {parameter: [1e61] * channels}
    b.bn(x, **given)
    refused(b.model(), "a parameter is larger than 1e60")
