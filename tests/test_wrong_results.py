"""What other tools get silently wrong, and what a careless fold would: refused here, or right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.write import rounded
from tests.builder import Builder
from tests.law import Folded, check, fold, law


def constants(model: onnx.ModelProto) -> dict[str, Any]:
    """Initializers by name, as arrays."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


# ------------------------------------------------------------------------------------- seen in other tools (field.md)


def test_matmul_reshape_bn_where_rows_become_channels() -> None:
    """ONNX Runtime folds this BatchNormalization into the MatMul's columns: off by 12 of 7."""
    b = Builder()
    y = b.matmul(b.input(4, 16), 16)
    b.bn(b.reshape(y, 1, 16, 4))
    case = law(b.model(), left=1)
    assert case.codes() == {"bn": {"row-axis", "graph-output"}}


def test_mul_by_a_vector_where_the_width_equals_the_channels() -> None:
    """OnnxSlim folds this Mul, which scales columns, into the channels: off by 14 of 10."""
    b = Builder()
    b.node("Mul", b.conv(b.input(2, 3, 6, 5), 5, 1), b.constant(b.normal(5)))
    assert law(b.model(), left=1).codes() == {"mul": {"row-axis", "graph-output"}}


def test_bn_in_training_mode_behind_a_conv() -> None:
    """onnxscript folds it with the stored statistics: off by 7.6 of 5.4."""
    b = Builder()
    b.bn(b.conv(b.input(3, 4, 5, 6), 4, 1), training_mode=1)
    case = fold(b.model())
    assert case.ops == ["Conv", "BatchNormalization"]
    assert case.codes() == {"bn": {"training-mode"}}


@pytest.mark.parametrize(
    "type_", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT], ids=["float16", "bfloat16", "float32"]
)
def test_weights_are_rounded_once(type_: int) -> None:
    """onnxscript and OnnxSlim round twice in float16, up to 2.4 ULP off."""
    b = Builder(opset=15, type_=type_)
    b.bn(b.conv(b.input(1, 16, 5, 6), 32, 3), parameters=TensorProto.FLOAT)
    model = b.model()
    old, new = constants(model), constants(fold(model).model)
    gamma, variance = (old[f"bn.{what}"].astype(np.float64) for what in ("gamma", "variance"))
    exact = old["conv.weight"].astype(np.float64) * (gamma / np.sqrt(variance + np.float32(1e-5)))[:, None, None, None]
    stored = new["conv.weight.folded"]
    assert stored.dtype == old["conv.weight"].dtype
    nearest = np.abs(stored.astype(np.float64) - exact)
    for direction in (-np.inf, np.inf):  # nothing that the type can hold is nearer
        beside = np.nextafter(stored, np.asarray(direction, stored.dtype)).astype(np.float64)
        assert np.all(nearest <= np.abs(beside - exact))


@pytest.mark.parametrize(("type_", "bits"), [(TensorProto.FLOAT16, 11), (TensorProto.BFLOAT16, 8)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_hair_above_a_tie_is_rounded_up(type_: int, bits: int, sign: float) -> None:
    """Through float32 the hair is lost, and the tie goes down to the even neighbour."""
    step = 2.0 ** (1 - bits)
    values = sign * np.array([1 + step / 2 + 2.0**-40, 1 + step / 2, 1 + 3 * step / 2 - 2.0**-40])
    assert [float(v) for v in rounded(values, type_)] == [sign * (1 + step), sign, sign * (1 + step)]


# ---------------------------------------------------------------------- refuse, or get wrong (design.md, section 2)

Make = Callable[[Builder], str | tuple[str, ...]]
"""Builds a graph and returns its outputs; '' where they are what nothing reads."""


def enlarging_constant(b: Builder) -> str:
    b.node("Mul", b.conv(b.input(1, 4, 1, 5), 4, 1), b.constant(b.normal(3, 4, 1, 1)))
    return ""


def enlarging_rank(b: Builder) -> str:
    b.node("Add", b.gemm(b.input(4, 3), 4), b.constant(b.normal(2, 4, 4)))
    return ""


def enlarging_unknown(b: Builder) -> str:
    b.node("Mul", b.conv(b.input("N", 4, 1, "W"), 4, 1), b.constant(b.normal(3, 1, 1, 1)))
    return ""


def operand_that_lacks_the_axis(b: Builder) -> str:
    x = b.conv(b.input(3, 1, 5, 4), 1, 1)
    b.affine(b.node("Add", b.input(3, 4, 5, 4), x), "t")
    return ""


def spatial_array_at_a_conv(b: Builder) -> str:
    b.affine(b.conv(b.input(3, 4, 5, 4), 4, 1), "s", axis=3)
    return ""


def reshape_that_merges_the_batch(b: Builder) -> str:
    b.affine(b.reshape(b.conv(b.input(3, 4, 5, 4), 4, 1), 12, 5, 4), "s", axis=0)
    return ""


def bn_with_statistics_outputs(b: Builder) -> tuple[str, ...]:
    x = b.conv(b.input(3, 4, 5, 6), 4, 1)
    slots = [b.constant(b.rng.uniform(0.5, 2, 4)) for _ in range(4)]
    b.node("BatchNormalization", x, *slots, name="bn", outputs=["bn", "mean", "var"], training_mode=1)
    return "bn", "mean"


def bn_with_is_test_0(b: Builder) -> str:
    b.bn(b.conv(b.input(3, 4, 5, 6), 4, 1), is_test=0)
    return ""


def bn_of_one_statistic_for_every_position(b: Builder) -> str:
    x = b.conv(b.input(3, 2, 3, 2), 2, 1)
    slots = [b.constant(b.rng.uniform(0.5, 2, (2, 3, 2))) for _ in range(4)]
    b.node("BatchNormalization", x, *slots, name="bn", spatial=0)
    return ""


def bn_without_a_positive_variance(b: Builder) -> str:
    b.bn(b.conv(b.input(3, 4, 5, 6), 4, 1), variance=[1.0, -0.5, 1.0, 1.0])
    return ""


def bn_that_is_not_finite(b: Builder) -> str:
    b.bn(b.conv(b.input(3, 4, 5, 6), 4, 1), mean=[0.0, np.inf, 1.0, 1.0])
    return ""


def division_by_zero(b: Builder) -> str:
    b.per_channel("Div", b.conv(b.input(3, 4, 5, 6), 4, 1), [1.0, 0.0, 2.0, 3.0])
    return ""


def reciprocal_that_overflows(b: Builder) -> str:
    b.per_channel("Div", b.conv(b.input(3, 4, 5, 6), 4, 1), [1.0, 1e-320, 2.0, 3.0])
    return ""


def constant_over_a_tensor(b: Builder) -> str:
    b.per_channel("Div", b.affine(b.input(3, 4, 5, 6), "t"), b.normal(4), left=True)
    return ""


def integers(b: Builder) -> str:
    b.node("Mul", b.input(3, 4, type_=TensorProto.INT64), b.constant([1, 2, 3, 4]))
    return ""


def conv_whose_weight_is_demanded(b: Builder) -> str:
    b.node("Conv", b.input(3, 4, 5, 6), b.affine(b.input(2, 4, 1, 1), "s"))
    return ""


def conv_with_a_dynamic_bias(b: Builder) -> str:
    b.affine(b.node("Conv", b.input(3, 4, 5, 6), b.constant(b.normal(2, 4, 1, 1)), b.input(2)), "s")
    return ""


def gemm_with_a_dynamic_bias(b: Builder) -> str:
    b.affine(b.node("Gemm", b.input(3, 4), b.constant(b.normal(4, 2)), b.input(2)), "s")
    return ""


def bn_with_a_dynamic_scale(b: Builder) -> str:
    x = b.conv(b.input(3, 4, 5, 6), 4, 1)
    slots = [b.constant(b.rng.uniform(0.5, 2, 4)) for _ in range(3)]
    b.node("BatchNormalization", x, b.input(4), *slots, name="bn")
    return ""


def bn_before_an_op_without_a_rule(b: Builder) -> str:
    b.conv(b.node("Elu", b.bn(b.input(3, 4, 5, 6))), 2, 1)
    return ""


def conv_that_is_a_graph_output_too(b: Builder) -> tuple[str, ...]:
    x = b.conv(b.input(3, 4, 5, 6), 4, 1)
    return x, b.bn(x)


def bn_output_that_is_also_consumed(b: Builder) -> tuple[str, ...]:
    y = b.bn(b.input(3, 4, 5, 6))
    return y, b.conv(y, 2, 1)


def passthrough_between_input_and_output(b: Builder) -> str:
    b.per_channel("Mul", b.input(3, 4, 5, 6), 1.0)
    return ""


def indices_of_a_channel_of_scale_zero(b: Builder) -> tuple[str, ...]:
    x = b.affine(b.input(3, 4, 6, 6), "z")
    y = b.node("MaxPool", x, outputs=["pooled", "indices"], kernel_shape=[2, 2])
    return b.conv(y, 2, 1), "indices"


REFUSED: list[tuple[Make, int, int, set[str]]] = [
    # graph, opset, affine nodes left, codes of the one that matters
    (enlarging_constant, 17, 0, {"changes-shape"}),
    (enlarging_rank, 17, 0, {"changes-shape"}),
    (enlarging_unknown, 17, 0, {"changes-shape"}),
    (operand_that_lacks_the_axis, 17, 1, {"lacks-axis", "graph-output"}),
    (spatial_array_at_a_conv, 17, 1, {"row-axis", "graph-output"}),
    (reshape_that_merges_the_batch, 17, 1, {"row-axis", "graph-output"}),
    (bn_of_one_statistic_for_every_position, 7, 1, {"unsupported-form"}),
    (constant_over_a_tensor, 17, 1, {"shift-through-nonlinear", "graph-input"}),
    (integers, 17, 0, set()),
    (conv_whose_weight_is_demanded, 17, 1, {"graph-input"}),
    (conv_with_a_dynamic_bias, 17, 1, {"dynamic-weight", "graph-output"}),
    (gemm_with_a_dynamic_bias, 17, 1, {"dynamic-weight", "graph-output"}),
    (bn_with_a_dynamic_scale, 17, 1, {"dynamic-parameters"}),
    (bn_before_an_op_without_a_rule, 17, 1, {"opaque-op", "graph-input"}),
    (conv_that_is_a_graph_output_too, 17, 1, {"graph-output"}),
    (bn_output_that_is_also_consumed, 17, 1, {"graph-input", "graph-output"}),
    (passthrough_between_input_and_output, 17, 1, {"graph-output"}),
    (indices_of_a_channel_of_scale_zero, 17, 1, {"zero-scale", "graph-input"}),
]


def built(make: Make, opset: int) -> onnx.ModelProto:
    b = Builder(opset)
    outputs = make(b)
    return b.model(*((outputs,) if isinstance(outputs, str) and outputs else outputs))


@pytest.mark.parametrize(("make", "opset", "left", "codes"), REFUSED, ids=[row[0].__name__ for row in REFUSED])
def test_refused_and_right(make: Make, opset: int, left: int, codes: set[str]) -> None:
    case = law(built(make, opset), left=left)
    assert set().union(*case.codes().values()) == codes


UNTOUCHED: list[tuple[Make, int, str]] = [
    # what no float64 reference can run, or what is not finite: the model must come through as it is
    (bn_with_statistics_outputs, 17, "training-mode"),
    (bn_with_is_test_0, 6, "training-mode"),
    (bn_with_is_test_0, 1, "training-mode"),
    (bn_without_a_positive_variance, 17, "invalid-statistics"),
    (bn_that_is_not_finite, 17, "invalid-statistics"),
    (division_by_zero, 17, "invalid-statistics"),
    (reciprocal_that_overflows, 17, "invalid-statistics"),
]


@pytest.mark.parametrize(("make", "opset", "code"), UNTOUCHED, ids=[f"{row[0].__name__}-{row[1]}" for row in UNTOUCHED])
def test_refused_and_untouched(make: Make, opset: int, code: str) -> None:
    model = built(make, opset)
    case = fold(model)
    assert case.model == model
    assert code in set().union(*case.codes().values())


# ---------------------------------------------------------------------------------------------- accepted, and right


def test_epsilon_is_a_float32() -> None:
    b = Builder()
    b.bn(b.conv(b.input(3, 2, 5, 6), 2, 1, bias=False), gamma=1.0, beta=0.0, mean=0.0, variance=0.0, epsilon=1e-5)
    case = law(b.model(), left=0)
    factor = constants(case.model)["conv.weight.folded"] / constants(case.original)["conv.weight"]
    np.testing.assert_allclose(factor, 1 / np.sqrt(np.float64(np.float32(1e-5))), rtol=1e-15)


@pytest.mark.parametrize("width", [4, 6])
@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_broadcasting_along_an_axis_before_opset_7(op: str, width: int) -> None:
    """The gate [N, C] starts at axis 0 of [N, C, H, W], not at its end; also where the width equals the channels."""
    b = Builder(opset=6)
    gate = b.affine(b.input(3, 4), "s")
    y = b.node(op, b.node("Sigmoid", b.input(3, 4, 5, width)), gate, broadcast=1, axis=0)
    b.affine(y, "s", axis=3)
    law(b.model(), left=2)


def test_a_constant_with_an_axis_takes_no_factor_of_another_axis() -> None:
    b = Builder(opset=6)
    b.affine(b.affine(b.input(3, 4, 5, 4), "s"), "s", axis=3)
    law(b.model(), left=2)


def test_a_constant_cannot_grow_before_opset_7() -> None:
    """Operands of one axis more are not broadcast there: Add keeps its scalar, or it leaves."""
    b = Builder(opset=6)
    y = b.per_channel("Add", b.conv(b.input(3, 4, 5, 6), 4, 1, bias=False), 2.0, name="kept")
    b.affine(y, "s")
    case = fold(b.model(), keep=("kept",))
    check(case)
    assert constants(case.model)["add.constant"].shape == ()


def annotated(tensor: str) -> Folded:
    b = Builder()
    b.bn(b.conv(b.input(3, 4, 5, 6), 4, 1))
    model = b.model()
    model.graph.quantization_annotation.add(tensor_name=tensor)
    return law(model, left=1)


@pytest.mark.parametrize("tensor", ["conv", "conv.weight", "conv.bias"])
def test_an_annotated_tensor_stays(tensor: str) -> None:
    assert annotated(tensor).codes() == {"bn": {"annotated", "graph-output"}}


def test_two_equal_affines_to_two_graph_outputs() -> None:
    """One of them can leave; the other output needs a producer of its own."""
    b = Builder()
    x = b.conv(b.input(3, 4, 5, 6), 4, 1)
    for _ in range(2):
        b.per_channel("Mul", x, [1.0, -2.0, 3.0, 0.5])
    law(b.model(), left=1)


def test_identities_between_graph_outputs() -> None:
    b = Builder()
    y = b.per_channel("Mul", b.conv(b.input(3, 4, 5, 6), 4, 1), 1.0)
    z = b.per_channel("Mul", y, 1.0)
    law(b.model(y, z), left=1)


def test_one_initializer_in_many_places() -> None:
    """The weight of two Convs with their own BatchNormalization, read by a third node as it is."""
    b = Builder()
    x, weight = b.input(3, 4, 5, 6), b.constant(b.normal(4, 4, 1, 1), "weight")
    for _ in range(2):
        b.bn(b.node("Conv", x, weight))
    b.node("Add", x, b.node("ReduceLogSumExp", weight, keepdims=1))
    case = law(b.model(), left=0)
    assert {"weight", "weight.folded", "weight.folded.2"} <= constants(case.model).keys()


def test_one_vector_as_bias_and_as_three_parameters() -> None:
    b = Builder()
    vector, variance = b.constant(b.normal(4)), b.constant([0.5, 1.0, 2.0, 3.0])
    y = b.node("Conv", b.input(3, 4, 5, 6), b.constant(b.normal(4, 4, 1, 1)), vector)
    b.node("BatchNormalization", y, vector, vector, vector, variance)
    law(b.model(), left=0)


def test_a_bias_behind_a_matmul_takes_the_name_of_a_graph_output() -> None:
    b = Builder()
    b.bn(b.matmul(b.input(3, 4), 5))
    case = law(b.model(), left=0)
    assert case.ops == ["MatMul", "Add"]


def test_initializers_listed_as_inputs_are_constants_before_ir_4() -> None:
    b = Builder(opset=8, ir=3)
    b.bn(b.conv(b.input(3, 4, 5, 6), 4, 1))
    case = law(b.model(), left=0)
    listed = [value.name for value in case.model.graph.input]
    assert listed == ["x", "conv.weight.folded", "conv.bias.folded"]
    assert {tensor.name for tensor in case.model.graph.initializer} == set(listed) - {"x"}


@pytest.mark.parametrize(
    ("tensor", "code"), [("bn.gamma", "overridable-parameter"), ("conv.weight", "overridable-weight")]
)
def test_initializers_listed_as_inputs_may_be_overridden_from_ir_4(tensor: str, code: str) -> None:
    b = Builder(ir=4)
    b.bn(b.conv(b.input(3, 4, 5, 6), 4, 1))
    model = b.model()
    (given,) = (t for t in model.graph.initializer if t.name == tensor)
    model.graph.input.append(helper.make_tensor_value_info(tensor, given.data_type, list(given.dims)))
    case = law(model, left=1)
    assert code in case.codes()["bn"]
    assert tensor in case.reason(code).unlock


def test_a_tensor_read_inside_a_subgraph_stays() -> None:
    """And a weight read there is cloned for the Conv."""
    b = Builder()
    y = b.conv(b.input(3, 4, 5, 6), 4, 1)
    z = b.bn(b.conv(y, 4, 1), name="outside")
    b.bn(y, name="captured")
    bodies = {}
    for branch, read in (("then_branch", y), ("else_branch", "conv.weight2")):
        node = helper.make_node("Identity", [read], [f"{branch}.out"])
        out = [helper.make_tensor_value_info(f"{branch}.out", TensorProto.DOUBLE, None)]
        bodies[branch] = helper.make_graph([node], branch, [], out)
    b.node("If", b.input(1, name="condition", type_=TensorProto.BOOL), **bodies)
    case = law(b.model(z, "captured", "if"), left=1)
    assert case.codes() == {"captured": {"captured", "graph-output"}}
    assert {"conv.weight2", "conv.weight2.folded"} <= constants(case.model).keys()


@pytest.mark.parametrize(
    ("mean", "gamma", "what"), [(30000.0, 10.0, "overflow"), (0.0, 1e-6, "underflow")], ids=["overflow", "underflow"]
)
@pytest.mark.parametrize("dense", [True, False], ids=["matmul", "conv"])
def test_constants_that_float16_cannot_hold(mean: float, gamma: float, what: str, dense: bool) -> None:
    b = Builder(type_=TensorProto.FLOAT16)
    y = b.matmul(b.input(3, 4), 5) if dense else b.conv(b.input(3, 4, 5, 6), 5, 1)
    b.bn(y, gamma=gamma, mean=mean, variance=1.0, parameters=TensorProto.FLOAT)
    case = fold(b.model())
    assert "out-of-range" in case.codes()["bn"], what
