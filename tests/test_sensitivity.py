"""The self-test: the smallest corruption of each kind of constant that a verification sees, for every rule."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import optimize, verify
from bnfold.equivalence import noise
from bnfold.equivalence.sensitivity import LARGEST, Sensitivity
from bnfold.rules import RULES
from tests import test_rules, test_rules_contraction, test_rules_normalization, test_rules_recurrent
from tests.builder import Builder
from tests.law import fold
from tests.program import bnfold, different, foldable, saved
from tests.rows import Row, built

MODULES = (test_rules, test_rules_contraction, test_rules_normalization, test_rules_recurrent)

SEEN = 2e-3
"""What every self-test below has to see in one channel; most see ten times less."""

UNARY = (
    "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Floor", "HardSigmoid", "HardSwish",
    "Gelu", "Mish", "Reciprocal", "Round", "Selu", "Shrink", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Swish",
    "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip

STEPS = frozenset({"Ceil", "Floor", "Round", "Sign"})
"""What is wrong shows only where a value crosses a step."""

STEEP = frozenset({"Asin", "Atanh", "Cosh", "Sinh", "Tan"})
"""These get inputs near zero: they are defined, or of one size, only there."""

WITHOUT_VALUES = {"Shape", "Size", "ArgMax", "ArgMin", "QuantizeLinear", "DequantizeLinear"}
"""These read no values, or pass steps alone; quantized weights have a test of their own."""


def first_rows() -> dict[str, Row]:
    """For every operator with a rule the first row of the tables that has it, with something to fold in front."""
    found: dict[str, Row] = {}
    for row in (row for module in MODULES for row in module.ROWS if row.front):
        for node in built(row, "front", letter(row), row.opsets[-1], TensorProto.FLOAT).nodes:
            if node.op_type in RULES:
                found.setdefault(node.op_type, row)
    return found


def letter(row: Row) -> str:
    return "s" if "s" in row.front else row.front[0]


ROWS = first_rows()


def rows_of(model: onnx.ModelProto, optimized: onnx.ModelProto, **options: Any) -> dict[str, Sensitivity]:
    found = verify(model, optimized, samples=1, self_test=True, **options)
    assert found.passed, found.problems
    assert found.sensitivity
    return {row.kind: row for row in found.sensitivity}


def smallest(rows: dict[str, Sensitivity]) -> dict[str, float]:
    return {kind: np.inf if row.smallest is None else row.smallest for kind, row in rows.items()}


def test_every_rule_has_a_self_test() -> None:
    assert set(RULES) == set(ROWS) | set(UNARY) | WITHOUT_VALUES


@pytest.mark.parametrize("row", dict.fromkeys(row.name for row in ROWS.values()))
def test_it_sees_a_small_mistake_behind_every_rule(row: str) -> None:
    case = next(each for each in ROWS.values() if each.name == row)
    folded = fold(built(case, "front", letter(case), case.opsets[-1], TensorProto.FLOAT).model())
    assert max(smallest(rows_of(folded.original, folded.model)).values()) <= SEEN


@pytest.mark.parametrize("op", UNARY)
def test_it_sees_a_small_mistake_behind_every_function(op: str) -> None:
    b = Builder(24 if op == "Swish" else 22, TensorProto.FLOAT, ir=10)
    x = b.conv(b.input(3, 4, 7, 5), 6, 3, scale=0.05 if op in STEEP else 1.0, bias=False)
    y = b.bn(b.conv(b.node(op, x), 5, 1))
    folded = fold(b.model(y))
    assert folded.left == 0
    found = smallest(rows_of(folded.original, folded.model))
    assert max(found.values()) <= (LARGEST if op in STEPS else SEEN), found


def test_it_sees_a_small_mistake_in_quantized_weights() -> None:
    b = Builder(17, TensorProto.FLOAT)
    weight = b.constant(np.arange(-60, 60).reshape(5, 4, 3, 2), "w", TensorProto.INT8)
    b.initializers[-1].CopyFrom(numpy_helper.from_array(np.arange(-60, 60, dtype=np.int8).reshape(5, 4, 3, 2), weight))
    scale = b.constant([0.01, 0.02, 0.03, 0.04, 0.05], "scale")
    read = b.node("DequantizeLinear", weight, scale, axis=0)
    b.declare(read, 5, 4, 3, 2)
    folded = fold(b.model(b.bn(b.node("Conv", b.input(3, 4, 7, 5), read))))
    assert folded.left == 0
    found = smallest(rows_of(folded.original, folded.model))
    assert found["DequantizeLinear.x_scale"] <= SEEN


def test_the_smallest_corruption_is_the_smallest_that_verify_sees() -> None:
    model = foldable()
    folded = optimize(model, samples=1).proto
    assert folded is not None
    for row in rows_of(model, folded).values():
        assert row.smallest is not None
        for factor, status in ((1.0, "different"), (0.25, "equivalent")):
            copy = onnx.ModelProto()
            copy.CopyFrom(folded)
            (tensor,) = (each for each in copy.graph.initializer if each.name == row.tensor)
            values = numpy_helper.to_array(tensor).copy()
            values[row.channel] *= np.float32(1 + row.smallest * factor)
            tensor.CopyFrom(numpy_helper.from_array(values, row.tensor))
            assert verify(model, copy, samples=1).status == status, row


def test_rows_say_what_was_corrupted() -> None:
    model = foldable()
    rows = rows_of(model, model)
    parameters = ("scale", "B", "input_mean", "input_var")
    assert set(rows) == {"Conv.W", "Conv.B", *(f"BatchNormalization.{name}" for name in parameters)}
    row = rows["Conv.W"]
    assert (row.node, row.tensor, row.constants, row.largest) == ("conv2", "conv.weight2", 2, LARGEST)
    assert row.smallest is not None
    assert row.ulps == pytest.approx(row.smallest * 2**23)
    assert row.seen_by in ("float64", "cpu")


def test_a_blind_verification_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "K", 1e9)
    rows = rows_of(foldable(), foldable())
    assert {row.smallest for row in rows.values()} == {None}
    assert {row.seen_by for row in rows.values()} == {""}


def test_a_channel_that_shows_nothing_is_passed_over() -> None:
    """Of three channels a ReLU holds the one of middle size at zero."""
    b = Builder(type_=TensorProto.FLOAT)
    bias = b.constant([0.5, -1e3, 0.0], "bias")
    weight = b.constant(b.normal(3, 2, 1, 1) * np.array([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1), "weight")
    model = b.model(b.node("Relu", b.node("Conv", b.input(3, 2, 8, 9), weight, bias)))
    rows = rows_of(model, model)
    assert rows["Conv.W"].channel != 1
    assert rows["Conv.W"].smallest is not None
    assert (rows["Conv.B"].channel, rows["Conv.B"].smallest is None) == (0, False)


def test_constant_nodes_are_corrupted_and_what_is_zero_or_empty_is_not() -> None:
    b = Builder(type_=TensorProto.FLOAT)
    value = b.node("Constant", value=numpy_helper.from_array(np.array([2, 3, 4], np.float32).reshape(3, 1, 1)))
    x = b.node("Mul", b.input(3, 3, 8, 9), value)
    y = b.node("Add", x, b.constant(np.zeros((3, 1, 1)), "zeros"))
    nothing = b.constant(np.zeros(0), "nothing")
    model = b.model(b.node("Resize", y, nothing, b.constant([1.0, 1.0, 2.0, 2.0], "scales"), mode="linear"))
    assert set(rows_of(model, model)) == {"Mul.B", "Resize.scales"}


@pytest.mark.parametrize(
    ("dtype", "type_"), [(np.float16, TensorProto.FLOAT16), (ml_dtypes.bfloat16, TensorProto.BFLOAT16)]
)
def test_half_precision_starts_at_its_own_units(dtype: Any, type_: int) -> None:
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(dtype), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    x, y = (
        helper.make_tensor_value_info(name, type_, dims) for name, dims in (("x", [2, 3, 8, 9]), ("y", [2, 5, 6, 7]))
    )
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    row = rows_of(model, model)["Conv.W"]
    unit = float(ml_dtypes.finfo(dtype).eps)
    assert row.largest == max(LARGEST, 2 * unit)
    assert row.smallest is None or row.smallest >= min(4 * unit, row.largest)


def test_external_data_is_judged_in_float64(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx", external=True)
    found = verify(path, path, samples=1, self_test=True)
    assert {row.seen_by for row in found.sensitivity} == {"float64"}


def test_a_pair_that_differs_is_not_rows_of() -> None:
    found = verify(foldable(), different(foldable()), samples=1, self_test=True)
    assert found.status == "different"
    assert found.sensitivity == ()


def test_the_models_are_not_modified() -> None:
    models = foldable(), foldable()
    before = [model.SerializeToString() for model in models]
    rows_of(*models)
    assert [model.SerializeToString() for model in models] == before


def test_the_command_line_shows_a_table(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    done = bnfold("verify", path, path, "--self-test", "--samples", 1, "--json", tmp_path / "report.json")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "report.json").read_text())["sensitivity"]
    lines = [line for line in done.err.splitlines() if " ULP, by " in line]
    assert [line.split()[0] for line in lines] == [row["kind"] for row in rows]
    assert len(rows) == 6
    assert re.search(r"by (float64|cpu): channel \d of conv\.weight2, conv2 \(1 of 2 constants\)", done.err)
    plain = bnfold("verify", path, path, "--samples", 1, "--json", "-")
    assert json.loads(plain.out)["sensitivity"] == []
