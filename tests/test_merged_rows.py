"""Products that merge where each row is scaled and shifted, also by zero: folded, certified, and the same."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest

from bnfold.patch import witness_of
from tests.builder import Builder
from tests.merging import agree, certified, solved

ZERO = [1.2, 1.3, 0.8, 0.0]
SCALES = {"a row of scale zero": ZERO, "no row of scale zero": [1.0, 2.0, 3.0, 4.0]}
BEHIND = ["nothing", "Conv", "Mul, Conv", "BN"]
CASES = list(product(["left", "right"], SCALES, [False, True], BEHIND, [False, True]))


def times(b: Builder, x: str, side: str, out: int) -> str:
    """A product by a constant matrix on one side."""
    if side == "right":
        return b.matmul(x, out)
    return b.node("MatMul", b.constant(b.normal(out, b.shape(x)[-2]), "matmul.weight"), x)


def built(side: str, scales: str, shifted: bool, behind: str, chain: bool) -> onnx.ModelProto:
    """A scale for each row, two products by matrices, and what is to fold into what is made of them."""
    b = Builder()

    def by_row(op: str, x: str, values: list[float]) -> str:
        return b.node(op, x, b.constant(np.reshape(values, (4, 1, 1))))

    x = b.node("Relu", b.input(3, 4, 5, 6)) if chain else b.conv(b.input(3, 4, 5, 6), 4, 1)
    x = by_row("Mul", x, SCALES[scales])
    x = by_row("Add", x, [0.1, 0.2, 0.3, 0.4]) if shifted else x
    y = times(b, x, side, 8)
    y = times(b, y, side, 5) if chain else b.node("Add", y, times(b, x, side, 8))
    if behind == "BN":
        y = b.bn(y, gamma=[0.0, 1.0, 2.0, 3.0], mean=0.3)
    elif behind != "nothing":
        y = b.conv(by_row("Mul", y, SCALES[scales]) if "Mul" in behind else y, 3, 1)
    return b.model(y)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_rows_of_every_kind(case: tuple[str, str, bool, str, bool]) -> None:
    model = built(*case)
    found, made = solved(model)
    assert [node.op_type for node in made.graph.node].count("MatMul") == 1
    agree(model, made)
    proof = certified(model, made, witness_of(found.rewrite))
    assert proof.ok, proof.failures[0]


@pytest.mark.parametrize("values", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("shape", [(3, 5, 4), (5, 4)])
@pytest.mark.parametrize("shifted", [False, True])
def test_scales_along_the_axis_that_a_matrix_on_the_left_does_not_see(
    shape: tuple[int, ...], shifted: bool, values: list[float]
) -> None:
    b = Builder()

    def scaled(x: str) -> str:
        return b.node("Mul", x, b.constant(values))

    x = scaled(b.node("Relu", b.input(*shape)))
    x = b.node("Add", x, b.constant([0.4, 0.5, 0.6, 0.7])) if shifted else x
    y = scaled(b.node("Add", times(b, x, "left", 5), times(b, x, "left", 5)))
    model = b.model(b.matmul(y, 3))
    found, made = solved(model)
    assert [node.op_type for node in made.graph.node] == ["Relu", *["Add"] * shifted, "MatMul", "MatMul"]
    agree(model, made)
    proof = certified(model, made, witness_of(found.rewrite))
    assert proof.ok, proof.failures[0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("row", range(4))
def test_a_wrong_bias_of_one_row_is_seen(side: str, row: int) -> None:
    model = built(side, "a row of scale zero", True, "BN", True)
    found, made = solved(model)
    (add,) = (node for node in made.graph.node if node.op_type == "Add" and node.output[0] == made.graph.output[0].name)
    (bias,) = (tensor for tensor in made.graph.initializer if tensor.name in add.input)
    values = onnx.numpy_helper.to_array(bias).copy()
    assert values.shape[1] == 4
    values[:, row] += 1e-9
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    proof = certified(model, made, witness_of(found.rewrite))
    assert not proof.ok
