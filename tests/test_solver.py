"""What the solver makes of whole graphs, and every reason it can give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from onnx import TensorProto, helper

from bnfold.reasons import CODES
from bnfold.rules import RULES
from tests.builder import Builder
from tests.law import check, fold, law

Make = Callable[[Builder], tuple[str, ...]]
"""Builds a graph and returns its outputs; () where they are what nothing reads."""

POSITIVE = [0.5, 1.0, 2.0, 1.5]
SHAPE = (3, 4, 5, 6)


# -------------------------------------------------------------------------------------------------- whole graphs


def conv_bn_relu_conv(b: Builder) -> tuple[str, ...]:
    b.conv(b.node("Relu", b.affine(b.conv(b.input(*SHAPE), 4, 3), "n")), 2, 3, pads=[1, 1, 1, 1])
    return ()


def relu_bn_padded_conv(b: Builder) -> tuple[str, ...]:
    b.conv(b.bn(b.node("Relu", b.conv(b.input(*SHAPE), 4, 1)), gamma=POSITIVE), 2, 3, pads=[1, 1, 1, 1])
    return ()


def bn_feeds_two_convs(b: Builder) -> tuple[str, ...]:
    y = b.affine(b.input(*SHAPE), "n")
    b.conv(y, 2, 1), b.conv(y, 3, 2)
    return ()


def bn_feeds_two_convs_one_padded(b: Builder) -> tuple[str, ...]:
    y = b.affine(b.input(*SHAPE), "n")
    b.conv(y, 2, 1), b.conv(y, 3, 3, pads=[1, 1, 1, 1])
    return ()


def conv_feeds_bn_and_conv(b: Builder) -> tuple[str, ...]:
    y = b.conv(b.input(*SHAPE), 4, 1)
    b.affine(y, "b"), b.conv(y, 3, 3)
    return ()


def conv_feeds_bn_of_scale_zero_and_conv(b: Builder) -> tuple[str, ...]:
    y = b.conv(b.input(*SHAPE), 4, 1)
    b.affine(y, "n"), b.conv(y, 3, 3)
    return ()


def conv_feeds_two_bn(b: Builder) -> tuple[str, ...]:
    y = b.conv(b.input(*SHAPE), 4, 1)
    b.conv(b.affine(y, "n"), 2, 1), b.conv(b.affine(y, "b"), 2, 1)
    return ()


def chain_of_bn(b: Builder) -> tuple[str, ...]:
    y = b.conv(b.input(*SHAPE), 4, 1)
    for kind in "nbnst":
        y = b.affine(y, kind)
    return ()


def chain_of_bn_alone(b: Builder) -> tuple[str, ...]:
    y = b.input(*SHAPE)
    for kind in "nbsbt":
        y = b.affine(y, kind)
    return ()


def mul_and_add_alone(b: Builder) -> tuple[str, ...]:
    b.affine(b.affine(b.input(*SHAPE), "s"), "t")
    return ()


def add_of_two_convs(b: Builder) -> tuple[str, ...]:
    x = b.input(*SHAPE)
    b.affine(b.node("Add", b.conv(x, 4, 1), b.conv(x, 4, 3, pads=[1, 1, 1, 1])), "n")
    return ()


def add_of_a_conv_and_the_input(b: Builder) -> tuple[str, ...]:
    x = b.input(*SHAPE)
    b.affine(b.node("Add", b.conv(x, 4, 1), x), "n")
    return ()


def sub_of_two_convs(b: Builder) -> tuple[str, ...]:
    x = b.input(*SHAPE)
    b.affine(b.node("Sub", b.conv(x, 4, 1), b.conv(x, 4, 1)), "n")
    return ()


def shift_balanced_by_the_skip(b: Builder) -> tuple[str, ...]:
    """A pre-activation block: the shift goes into the convolution that writes the stream, the skip takes it back."""
    stream = b.conv(b.input(*SHAPE), 4, 3)
    for _ in range(2):
        y = b.node("Relu", b.affine(stream, "b"))
        y = b.node("Relu", b.affine(b.conv(y, 4, 3, pads=[1, 1, 1, 1]), "n"))
        stream = b.node("Add", stream, b.conv(y, 4, 3, pads=[1, 1, 1, 1]))
    b.conv(b.node("Relu", b.affine(stream, "b")), 2, 1)
    return ()


def concat_of_two_convs(b: Builder) -> tuple[str, ...]:
    x = b.input(*SHAPE)
    b.affine(b.node("Concat", b.conv(x, 2, 1), b.conv(x, 3, 1), axis=1), "n")
    return ()


def concat_of_a_conv_and_the_input(b: Builder) -> tuple[str, ...]:
    x = b.input(*SHAPE)
    b.affine(b.node("Concat", b.conv(x, 2, 1), x, axis=1), "n")
    return ()


def dense_block(b: Builder) -> tuple[str, ...]:
    """One stream, read by several BatchNormalizations with their own statistics: every Conv is unpadded, so all go."""
    stream = b.conv(b.input(*SHAPE), 4, 1)
    for _ in range(3):
        stream = b.node("Concat", stream, b.conv(b.affine(stream, "b"), 2, 1), axis=1)
    return ()


def gate(b: Builder) -> tuple[str, ...]:
    y = b.conv(b.input(*SHAPE), 4, 1)
    b.affine(b.node("Mul", y, b.node("Sigmoid", b.conv(b.node("GlobalAveragePool", y), 4, 1))), "n")
    return ()


def gate_and_scale(b: Builder) -> tuple[str, ...]:
    y, z = b.conv(b.input(*SHAPE), 4, 1), b.conv(b.input(*SHAPE), 4, 1)
    b.affine(b.node("Mul", b.node("Sigmoid", y), z), "s")
    return ()


def matmul_transpose_bn(b: Builder) -> tuple[str, ...]:
    b.bn(b.node("Transpose", b.matmul(b.input(3, 7, 4), 6, bias=True), perm=[0, 2, 1]))
    return ()


def unsqueeze_bn_squeeze(b: Builder) -> tuple[str, ...]:
    b.squeeze(b.bn(b.unsqueeze(b.gemm(b.input(3, 4), 5), 2)), 2)
    return ()


def gemm_reshape_bn(b: Builder) -> tuple[str, ...]:
    b.bn(b.reshape(b.gemm(b.input(3, 4), 30), 3, 5, 2, 3))
    return ()


def bn_flatten_gemm(b: Builder) -> tuple[str, ...]:
    b.gemm(b.node("Flatten", b.bn(b.input(3, 4, 2, 3))), 5)
    return ()


def bn_pool_flatten_gemm(b: Builder) -> tuple[str, ...]:
    b.gemm(b.node("Flatten", b.node("GlobalAveragePool", b.bn(b.input(*SHAPE)))), 5)
    return ()


def matmul_by_a_constant_on_the_left(b: Builder) -> tuple[str, ...]:
    y = b.node("MatMul", b.constant(b.normal(5, 3)), b.affine(b.input(3, 4), "s", axis=0))
    b.node("Relu", b.affine(y, "s", axis=0))
    return ()


def matmul_by_a_batch_of_constants(b: Builder) -> tuple[str, ...]:
    y = b.node("MatMul", b.affine(b.input(2, 3, 5, 4), "s", axis=3), b.constant(b.normal(3, 4, 6)))
    b.affine(y, "s", axis=3)
    return ()


def rows_of_a_matmul(b: Builder) -> tuple[str, ...]:
    b.affine(b.matmul(b.absorber(b.input(3, 7, 4), out=7), 6), "s", axis=1)
    return ()


def shape_of_a_bn(b: Builder) -> tuple[str, ...]:
    y = b.bn(b.conv(b.input(*SHAPE), 4, 1))
    b.node("Shape", y), b.node("Size", y)
    return ()


def shared_parameters(b: Builder) -> tuple[str, ...]:
    x = b.input(*SHAPE)
    parameters = [b.constant(b.rng.uniform(0.5, 2, 4)) for _ in range(4)]
    for _ in range(2):
        b.node("BatchNormalization", b.conv(x, 4, 1), *parameters)
    return ()


def symbolic_shapes(b: Builder) -> tuple[str, ...]:
    y = b.bn(b.conv(b.input("N", 4, "H", "W"), 4, 3))
    b.gemm(b.node("Flatten", b.node("GlobalAveragePool", b.conv(b.bn(y), 5, 1))), 3)
    return ()


def clip_between_uniform_affines(b: Builder) -> tuple[str, ...]:
    """The bounds move with the one scale and the one shift."""
    y = b.per_channel("Add", b.per_channel("Mul", b.input(*SHAPE), 0.7), 0.4)
    y = b.conv(b.node("Clip", y, b.constant(-0.5), b.constant(1.0)), 4, 1)
    y = b.node("Clip", y, "", b.constant(0.5))
    b.per_channel("Sub", b.per_channel("Mul", y, 1.5), 0.25)
    return ()


def only_the_sign_goes_back(b: Builder) -> tuple[str, ...]:
    """An odd function in front passes signs, a maximum behind passes the rest."""
    y = b.bn(b.node("Tanh", b.conv(b.input(*SHAPE), 4, 1)), gamma=[0.5, -1.0, 2.0, -1.5])
    b.conv(b.node("MaxPool", y, kernel_shape=[2, 2]), 3, 1)
    return ()


def uniform_bn_behind_clip(b: Builder) -> tuple[str, ...]:
    """As it is initialised: it varies on no axis."""
    y = b.node("Clip", b.conv(b.input(*SHAPE), 4, 1), b.constant(0.0), b.constant(6.0))
    b.node("Elu", b.bn(y, gamma=np.ones(4), beta=np.zeros(4), mean=np.zeros(4), variance=np.ones(4)))
    return ()


def scale_of_samples_through_a_pool(b: Builder) -> tuple[str, ...]:
    """Not of channels: a pool passes what differs from one sample of the batch to the next."""
    y = b.node("Mul", b.input(*SHAPE), b.constant(b.normal(3, 1, 1, 1)))
    y = b.node("AveragePool", y, kernel_shape=[2, 2])
    b.node("Tanh", b.node("Mul", y, b.constant(b.normal(3, 1, 1, 1))))
    return ()


GRAPHS: list[tuple[Make, int]] = [
    (scale_of_samples_through_a_pool, 1),
    (only_the_sign_goes_back, 0),
    (uniform_bn_behind_clip, 0),
    (conv_bn_relu_conv, 0),
    (relu_bn_padded_conv, 1),
    (bn_feeds_two_convs, 0),
    (bn_feeds_two_convs_one_padded, 1),
    (conv_feeds_bn_and_conv, 0),
    (conv_feeds_bn_of_scale_zero_and_conv, 1),
    (conv_feeds_two_bn, 0),
    (chain_of_bn, 0),
    (chain_of_bn_alone, 1),
    (mul_and_add_alone, 2),
    (add_of_two_convs, 0),
    (add_of_a_conv_and_the_input, 1),
    (sub_of_two_convs, 0),
    (shift_balanced_by_the_skip, 0),
    (concat_of_two_convs, 0),
    (concat_of_a_conv_and_the_input, 1),
    (dense_block, 0),
    (gate, 1),
    (gate_and_scale, 0),
    (matmul_transpose_bn, 0),
    (unsqueeze_bn_squeeze, 0),
    (gemm_reshape_bn, 0),
    (bn_flatten_gemm, 0),
    (bn_pool_flatten_gemm, 0),
    (matmul_by_a_constant_on_the_left, 0),
    (matmul_by_a_batch_of_constants, 0),
    (rows_of_a_matmul, 0),
    (shape_of_a_bn, 0),
    (shared_parameters, 0),
    (symbolic_shapes, 0),
    (clip_between_uniform_affines, 0),
]


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(("make", "left"), GRAPHS, ids=[make.__name__ for make, _ in GRAPHS])
def test_what_is_left(make: Make, left: int, opset: int) -> None:
    b = Builder(opset)
    law(b.model(*make(b)), left=left)


@pytest.mark.parametrize(
    ("type_", "tolerance"), [(TensorProto.FLOAT, 1e-6), (TensorProto.FLOAT16, 4e-3), (TensorProto.BFLOAT16, 3e-2)]
)
def test_every_float_type_with_float32_statistics(type_: int, tolerance: float) -> None:
    b = Builder(22, type_)
    b.conv(b.node("Relu", b.bn(b.conv(b.input(*SHAPE), 4, 3), parameters=TensorProto.FLOAT)), 2, 1)
    case = law(b.model(), left=0, tolerance=tolerance)
    assert {tensor.data_type for tensor in case.model.graph.initializer} == {type_}


def test_the_body_of_a_branch() -> None:
    """A Conv inside a branch, with weights of the outer graph: they are cloned there."""
    b, shaped = Builder(), [helper.make_tensor_value_info(name, TensorProto.DOUBLE, SHAPE) for name in ("bn", "other")]
    x = b.input(*SHAPE)
    b.bn(b.conv(x, 4, 1))
    then = helper.make_graph([b.nodes.pop(0), b.nodes.pop(0)], "then", [], shaped[:1])
    other = helper.make_graph([helper.make_node("Identity", [x], ["other"])], "else", [], shaped[1:])
    b.node("If", b.input(1, name="condition", type_=TensorProto.BOOL), then_branch=then, else_branch=other)
    case = law(b.model(), left=0)
    assert [tensor.name for tensor in case.model.graph.initializer] == ["conv.weight.folded", "conv.bias.folded"]


# ------------------------------------------------------------------------------------------------------- reasons


def training(b: Builder) -> None:
    b.bn(b.conv(b.input(*SHAPE), 4, 1), training_mode=1)


def dynamic_scale(b: Builder) -> None:
    x, *rest = b.input(*SHAPE), *(b.constant(POSITIVE) for _ in range(3))
    b.node("BatchNormalization", x, b.input(4), *rest, name="bn")


def overridable_scale(b: Builder) -> None:
    b.bn(b.input(*SHAPE))
    b.inputs.append(helper.make_tensor_value_info("bn.gamma", TensorProto.DOUBLE, [4]))


def overridable_weight(b: Builder) -> None:
    b.bn(b.conv(b.input(*SHAPE), 4, 1))
    b.inputs.append(helper.make_tensor_value_info("conv.weight", TensorProto.DOUBLE, [4, 4, 1, 1]))


def negative_variance(b: Builder) -> None:
    b.bn(b.input(*SHAPE), variance=[1.0, -1.0, 1.0, 1.0])


def unknown_rank(b: Builder) -> None:
    x = b.node("Reshape", b.input(*SHAPE), b.input("rank", type_=TensorProto.INT64))
    b.node("Mul", x, b.constant([2.0]), name="mul")


def equation_with_dots(b: Builder) -> None:
    y = b.node("Einsum", b.input(3, 4), b.constant(b.normal(4, 5)), equation="...k,kn->...n")
    b.node("Mul", y, b.constant(b.normal(5)), name="mul")


def enlarged(b: Builder) -> None:
    b.node("Mul", b.conv(b.input(1, 4, 5, 6), 4, 1), b.constant(b.normal(3, 4, 1, 1)))


def alone(b: Builder) -> None:
    b.bn(b.input(*SHAPE))


def output_and_consumed(b: Builder) -> None:
    b.conv(b.bn(b.input(*SHAPE), name="bn"), 2, 1)


def elu(b: Builder) -> None:
    b.conv(b.node("Elu", b.bn(b.input(*SHAPE))), 2, 1)


def dynamic_weight(b: Builder) -> None:
    b.node("Conv", b.bn(b.input(*SHAPE)), b.input(2, 4, 1, 1))


def padded(b: Builder) -> None:
    b.conv(b.bn(b.input(*SHAPE)), 2, 3, pads=[1, 1, 1, 1])


def signed_before_relu(b: Builder) -> None:
    b.conv(b.node("Relu", b.affine(b.input(*SHAPE), "s")), 2, 1)


def shift_before_relu(b: Builder) -> None:
    b.conv(b.node("Relu", b.affine(b.input(*SHAPE), "t")), 2, 1)


def shift_behind_an_einsum(b: Builder) -> None:
    b.affine(b.node("Einsum", b.input(3, 4), b.constant(b.normal(4, 6)), equation="mk,kn->mn"), "t")


def spatial_scale_before_a_pool(b: Builder) -> None:
    b.conv(b.node("GlobalAveragePool", b.affine(b.input(*SHAPE), "s", axis=3)), 2, 1)


def operand_without_channels(b: Builder) -> None:
    b.affine(b.node("Add", b.conv(b.input(*SHAPE), 4, 1), b.conv(b.input(3, 1, 5, 6), 1, 1)), "s")


def scale_zero_of_a_tensor_that_is_also_read(b: Builder) -> None:
    y = b.conv(b.input(*SHAPE), 4, 1)
    b.affine(y, "z"), b.conv(y, 2, 1)


def two_users_that_differ(b: Builder) -> None:
    y = b.node("Relu", b.conv(b.input(*SHAPE), 4, 1))
    b.affine(y, "p"), b.affine(y, "p")
    b.node("Sigmoid", y)


def one_tensor_twice_in_a_concat(b: Builder) -> None:
    y = b.conv(b.input(*SHAPE), 4, 1)
    b.affine(b.node("Concat", y, y, axis=1), "p")


def spatial_scale_behind_a_conv(b: Builder) -> None:
    b.affine(b.conv(b.input(*SHAPE), 4, 1), "s", axis=3)


def shift_before_a_matmul(b: Builder) -> None:
    b.matmul(b.affine(b.input(3, 4), "t"), 5)


def too_large(b: Builder) -> None:
    b.type = TensorProto.FLOAT
    b.per_channel("Mul", b.conv(b.input(*SHAPE), 4, 1, scale=1e30), [1e30] * 4, name="mul")


def far_from_zero(b: Builder) -> None:
    y = b.conv(b.input(*SHAPE), 4, 1)
    b.bn(y, gamma=1e-14, beta=1.0), b.conv(y, 2, 1)


def before_a_quantizer(b: Builder) -> None:
    x = b.bn(b.input(*SHAPE, type_=TensorProto.FLOAT), parameters=TensorProto.FLOAT)
    b.node("QuantizeLinear", x, b.constant(0.1, type_=TensorProto.FLOAT))


REASONS: list[tuple[str, Callable[[Builder], None], str, str]] = [
    # code, graph, affine that stays, node or tensor at fault
    ("training-mode", training, "bn", "bn"),
    ("dynamic-parameters", dynamic_scale, "bn", "bn"),
    ("overridable-parameter", overridable_scale, "bn", "bn"),
    ("overridable-weight", overridable_weight, "bn", "conv"),
    ("invalid-statistics", negative_variance, "bn", "bn"),
    ("unknown-shape", unknown_rank, "mul", "mul"),
    ("unsupported-form", equation_with_dots, "mul", "einsum"),
    ("changes-shape", enlarged, "mul", "mul"),
    ("graph-input", alone, "bn", "x"),
    ("graph-output", alone, "bn", "bn"),
    ("opaque-op", elu, "bn", "elu"),
    ("dynamic-weight", dynamic_weight, "bn", "conv"),
    ("padded-shift", padded, "bn", "conv"),
    ("negative-scale", signed_before_relu, "mul", "relu"),
    ("shift-through-nonlinear", shift_before_relu, "add", "relu"),
    ("shift-refused", shift_behind_an_einsum, "add", "einsum"),
    ("not-uniform", spatial_scale_before_a_pool, "mul", "globalaveragepool"),
    ("lacks-axis", operand_without_channels, "mul", "add"),
    ("zero-scale", scale_zero_of_a_tensor_that_is_also_read, "mul", "conv2"),
    ("conflict", one_tensor_twice_in_a_concat, "mul", "concat"),
    ("row-axis", spatial_scale_behind_a_conv, "mul", "conv"),
    ("would-only-move", shift_before_a_matmul, "add", "matmul"),
    ("quantized", before_a_quantizer, "bn", "quantizelinear"),
    ("out-of-range", too_large, "mul", "conv"),
    ("precision-loss", far_from_zero, "bn", "conv"),
]
ELSEWHERE = {
    "captured": "tests/test_wrong_results.py",
    "annotated": "tests/test_wrong_results.py",
    "kept-by-user": "tests/test_solver.py",
    "verification-failed": "tests/test_solver.py",
    "search-limit": "tests/test_solver.py",
    "inside-function": "tests/test_functions.py",
    "part-of-operator": "tests/test_composites.py",
}
"""Codes whose test is no row of the table, with the file where it stands."""


@pytest.mark.parametrize(("code", "make", "node", "at"), REASONS, ids=[row[0] for row in REASONS])
def test_a_reason_names_its_place(code: str, make: Callable[[Builder], None], node: str, at: str) -> None:
    b = Builder()
    make(b)
    case = fold(b.model())
    found = {reason.code: reason for outcome in case.solution.outcomes if outcome.node.label == node
             for reason in outcome.reasons}  # fmt: skip
    assert code in found
    assert found[code].at == at
    assert found[code].text


def test_every_code_has_a_test() -> None:
    rows = {code for code, *_ in REASONS}
    for code, path in ELSEWHERE.items():
        assert f'"{code}"' in Path(path).read_text(encoding="utf-8")
    assert rows | ELSEWHERE.keys() == CODES.keys()


def two_bn() -> Builder:
    b = Builder()
    b.bn(b.conv(b.bn(b.conv(b.input(*SHAPE), 4, 1), name="first"), 4, 1), name="second")
    return b


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": ("first",)}, {"first": {"kept-by-user"}}),
        ({"keep": ("*st",)}, {"first": {"kept-by-user"}}),
        ({"only": ("first",)}, {"second": {"kept-by-user"}}),
        ({"drop": ("second",)}, {"second": {"verification-failed"}}),
    ],
)
def test_what_is_asked_to_stay(options: dict[str, tuple[str, ...]], kept: dict[str, set[str]]) -> None:
    assert fold(two_bn().model(), **options).codes() == kept


@pytest.mark.parametrize("steps", [1, 2])
def test_an_attempt_ends(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the last of three nodes too."""
    monkeypatch.setattr("bnfold.solver.sweep.STEPS", (steps, steps))
    b = Builder()
    y = b.node("Relu", b.node("Relu", b.conv(b.input(*SHAPE), 4, 1)))
    b.per_channel("Mul", y, POSITIVE)
    assert "search-limit" in fold(b.model()).codes()["mul"]


def test_every_rule_has_a_row() -> None:
    files = [*Path("tests").glob("test_*rules*.py"), Path("tests/test_solver.py"), Path("tests/builder.py")]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    assert {op for op in RULES if f'"{op}"' not in text} == set()


def test_zero_scales_of_a_chain_stay_zero() -> None:
    """Pulled twice through one channel of scale zero: forwards it says nothing, backwards it still holds."""
    b = Builder()
    y = b.node("Transpose", b.conv(b.input(*SHAPE), 4, 1), perm=[0, 2, 3, 1])
    y = b.per_channel("Mul", y, [1.0, 0.0, -2.0, 0.0], axis=3)
    b.per_channel("Add", y, np.arange(4.0), axis=3)
    law(b.model(), left=0)


@pytest.mark.parametrize("opset", [6, 17])
@pytest.mark.parametrize("slope", ["Relu", "LeakyRelu", "PRelu"])
def test_a_constant_channel_passes_an_activation_as_its_value(slope: str, opset: int) -> None:
    """Channels of scale zero hold 0.7 and -0.5 in front of it, whatever their own slope makes of these behind it."""
    b = Builder(opset)
    y = b.bn(b.input(*SHAPE), gamma=[1.0, 0.0, 2.0, 0.0], beta=[0.0, 0.7, 0.0, -0.5], mean=0.0)
    y = b.prelu(y, [0.5, -2.0, 0.25, 3.0]) if slope == "PRelu" else b.node(slope, y)
    b.conv(y, 2, 1)
    law(b.model(), left=0)


def test_the_slopes_of_opset_6_lie_on_the_channels() -> None:
    """Constant columns meet slopes by channel: as many columns as channels change nothing."""
    b = Builder(6)
    y = b.bn(b.input(3, 4, 5, 4), gamma=[1.0, 0.0, 2.0, 0.0], beta=[0.0, 0.7, 0.0, -0.5], mean=0.0)
    y = b.prelu(b.node("Transpose", y, perm=[0, 3, 2, 1]), [0.5, -2.0, 0.25, 3.0])
    b.conv(b.node("Transpose", y, perm=[0, 3, 2, 1]), 2, 1)
    law(b.model(), left=1)


def test_a_bn_that_stays_takes_up_both_sides() -> None:
    b = Builder()
    b.affine(b.bn(b.affine(b.input(*SHAPE), "b"), name="middle"), "n")
    case = fold(b.model(), keep=("middle",))
    check(case)
    assert case.ops == ["BatchNormalization"]


@pytest.mark.parametrize("opset", [6, 17])
@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("values", [[0.5, -2.0, 3.0, 1.5], 0.5], ids=["vector", "scalar"])
def test_a_factor_that_stays_takes_up_both_sides(op: str, opset: int, values: ArrayLike) -> None:
    b = Builder(opset)
    y = b.per_channel(op, b.affine(b.input(*SHAPE), "s"), values, name="middle")
    b.affine(y, "s")
    case = fold(b.model(), keep=("middle",))
    check(case)
    grows = opset < 7 and np.ndim(values) == 0  # the constant could not
    assert len(case.ops) == (3 if grows else 1)


@pytest.mark.parametrize(("op", "kept"), [("SpaceToDepth", "front"), ("DepthToSpace", "behind")])
def test_a_factor_for_each_place_in_a_block_has_no_constant(op: str, kept: str) -> None:
    """It would alternate from position to position: the Mul that stays cannot hold it."""
    b = Builder()
    y = b.per_channel("Mul", b.input(3, 8, 4, 6), b.normal(8), name="front")
    y = b.node(op, y, blocksize=2)
    b.per_channel("Mul", y, b.normal(b.shape(y)[1]), name="behind")
    case = fold(b.model(), keep=(kept,))
    check(case)
    assert case.left == 2
