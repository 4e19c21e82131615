"""What bnfold computes from constants is what ONNX Runtime computes from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from bnfold import optimize
from bnfold.constants import _KERNELS, Constant
from bnfold.graph import Model
from bnfold.source import read
from tests.builder import Builder
from tests.law import law

X = np.linspace(-2.5, 3.0, 24).reshape(2, 3, 4)
V = np.array([-3, 7, 2, -5], np.int64)
P = np.array([0.5, 2.0, 1.5])
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
FIRST, LAST = -(2**63), 2**63 - 1

Row = tuple[str, list[ArrayLike], dict[str, Any], int]
"""Operator, constant inputs, attributes, opset."""

ROWS: list[Row] = [
    ("Identity", [X], {}, 17),
    ("Cast", [X], {"to": INT64}, 17),
    ("Cast", [X], {"to": TensorProto.FLOAT16}, 17),
    ("Cast", [X], {"to": TensorProto.BFLOAT16}, 17),
    ("Cast", [V], {"to": FLOAT}, 17),
    ("Cast", [V], {"to": TensorProto.BOOL}, 17),
    ("CastLike", [X, V], {}, 17),
    ("Reshape", [X, [4, -1]], {}, 17),
    ("Reshape", [X, [0, 0, 2, -1]], {}, 17),
    ("Reshape", [np.zeros((0, 3)), [0, 5]], {"allowzero": 1}, 17),
    ("Unsqueeze", [X, [0, -1]], {}, 17),
    ("Unsqueeze", [X], {"axes": [1, 4]}, 11),
    ("Squeeze", [X[:1, :, :1], [-1]], {}, 17),
    ("Squeeze", [X[:1, :, :1]], {}, 17),
    ("Squeeze", [X[:1, :, :1]], {"axes": [0]}, 11),
    ("Expand", [P, [2, 1]], {}, 17),
    ("Expand", [X, [1]], {}, 17),
    ("ConstantOfShape", [[2, 3]], {}, 17),
    ("ConstantOfShape", [[2]], {"value": helper.make_tensor("v", INT64, [1], [7])}, 17),
    ("Shape", [X], {}, 17),
    ("Shape", [X], {"start": -2}, 17),
    ("Shape", [X], {"start": 1, "end": -1}, 17),
    ("Size", [X], {}, 17),
    ("Transpose", [X], {}, 17),
    ("Transpose", [X], {"perm": [1, 2, 0]}, 17),
    ("Flatten", [X], {}, 17),
    ("Flatten", [X], {"axis": 0}, 17),
    ("Flatten", [X], {"axis": 3}, 17),
    ("Flatten", [X], {"axis": -1}, 17),
    ("Flatten", [X], {"axis": -3}, 17),
    ("Slice", [X, [1], [3], [1]], {}, 17),
    ("Slice", [X, [0, 1], [1, LAST]], {}, 17),
    ("Slice", [X, [-1], [FIRST], [2], [-1]], {}, 17),
    ("Slice", [X, [3], [-5], [2], [-2]], {}, 17),
    ("Slice", [X, [3], [-4], [2], [-1]], {}, 17),
    ("Slice", [X, [100], [0], [2], [-1]], {}, 17),
    ("Slice", [X, [-100], [100], [-1], [3]], {}, 17),
    ("Slice", [X, [-100], [FIRST], [2], [-1]], {}, 17),
    ("Slice", [X, [2], [1], [2]], {}, 17),
    ("Slice", [X], {"starts": [1], "ends": [-1], "axes": [2]}, 9),
    ("Gather", [X, [2, -3, 0]], {"axis": 1}, 17),
    ("Gather", [X, 1], {"axis": 2}, 17),
    ("Gather", [X, [[0, 1], [1, -1]]], {}, 17),
    ("Split", [X, [1, 3]], {"axis": 2}, 17),
    ("Split", [X], {"axis": 2}, 17),
    ("Split", [X], {"axis": 1, "num_outputs": 2}, 18),
    ("Split", [X], {"axis": -1, "split": [3, 1]}, 11),
    ("Range", [np.int64(7), np.int64(-2), np.int64(-3)], {}, 17),
    ("Range", [0.5, 3.0, 0.75], {}, 17),
    ("Range", [np.int64(3), np.int64(1), np.int64(1)], {}, 17),
    ("Tile", [P, [3]], {}, 17),
    ("Tile", [X, [1, 2, 1]], {}, 17),
    ("Concat", [X, X[:, :1]], {"axis": 1}, 17),
    ("Concat", [V, V[:2]], {"axis": -1}, 17),
    ("Add", [X, P[:, None]], {}, 17),
    ("Sub", [X, 1.5], {}, 17),
    ("Sub", [V, V[::-1]], {}, 17),
    ("Mul", [X, P[:, None]], {}, 17),
    ("Div", [X, P[:, None]], {}, 17),
    ("Div", [V, np.array([2, -2, 3, 3])], {}, 17),
    ("Sum", [X, P[:, None], np.ones(4)], {}, 17),
    ("Max", [X, P[:, None], np.zeros(1)], {}, 17),
    ("Min", [X, P[:, None]], {}, 17),
    ("Pow", [P, [2.0, -1.0, 0.5]], {}, 17),
    ("Pow", [V, [2, 3, 2, 0]], {}, 17),
    ("Pow", [np.array([4, 9]), [0.5, 0.5]], {}, 17),
    ("Neg", [X], {}, 17),
    ("Neg", [V], {}, 17),
    ("Abs", [V], {}, 17),
    ("Sqrt", [P], {}, 17),
    ("Exp", [X], {}, 17),
    ("Log", [P], {}, 17),
    ("Reciprocal", [P], {}, 17),
    ("Relu", [X], {}, 17),
    ("Sigmoid", [0.2 * X], {}, 17),
    ("Tanh", [X], {}, 17),
    ("Softplus", [X], {}, 17),
    ("Softmax", [X], {}, 17),
    ("Softmax", [X], {"axis": 1}, 17),
    ("Softmax", [X], {}, 11),
    ("Softmax", [X], {"axis": -1}, 11),
    ("Clip", [X, -0.5, 1.5], {}, 17),
    ("Clip", [X, -0.5], {}, 17),
    ("Clip", [X, -0.5, ""], {}, 17),
    ("Clip", [X], {"max": 1.5}, 10),
    ("Clip", [X], {"min": -0.5}, 10),
    ("Clip", [X], {"min": -0.5, "max": 1.5}, 10),
    ("ReduceSum", [X, [0, -1]], {}, 17),
    ("ReduceSum", [X], {"axes": [1], "keepdims": 0}, 11),
    ("ReduceSum", [V], {}, 17),
    ("ReduceSum", [V.astype(np.int32)], {}, 17),
    ("ReduceProd", [V], {"keepdims": 0}, 17),
    ("ReduceProd", [V.astype(np.int32)], {"keepdims": 0}, 17),
    ("ReduceMax", [X], {"axes": [1]}, 17),
    ("ReduceMin", [X, [2]], {"keepdims": 0}, 18),
    ("ReduceMean", [X, [1, 2]], {}, 18),
    ("ReduceMean", [X], {}, 17),
    ("ReduceL1", [X], {"axes": [0]}, 17),
    ("ReduceL2", [X], {"axes": [1, 2]}, 17),
    ("ReduceSumSquare", [X], {"axes": [1]}, 17),
    ("MatMul", [X, X.swapaxes(1, 2)[:1]], {}, 17),
    ("MatMul", [X, P[[0, 1, 2, 0]]], {}, 17),
    ("MatMul", [P, X], {}, 17),
    ("MatMul", [P, P], {}, 17),
    ("BatchNormalization", [X, P, 0 * P, 0 * P, P[::-1]], {}, 17),
    ("BatchNormalization", [np.abs(X), P, P, -P, P], {"epsilon": 0.5}, 9),
    (
        "BatchNormalization",
        [np.abs(X[0]), *(np.array(row) for row in (4 * [2.0], 4 * [1.5], 4 * [-1.0], 4 * [0.25]))],
        {},
        17,
    ),
    ("Equal", [V, [7, 7, 2, 7]], {}, 17),
    ("Where", [np.array([True, False, True]), P, np.array(0.25)], {}, 17),
    ("Where", [np.array([True, False, True, False]), V, np.array([[1], [2]])], {}, 17),
]


def evaluated(model: onnx.ModelProto, name: str) -> Constant:
    found = Model(read(model)).main.constant(name)
    assert found is not None, name
    return found


def runtime(model: onnx.ModelProto) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {})]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "opset"), ROWS, ids=[f"{i}-{row[0]}-{row[3]}" for i, row in enumerate(ROWS)]
)
def test_as_onnx_runtime(op: str, inputs: list[ArrayLike], attributes: dict[str, Any], opset: int) -> None:
    b = Builder(opset, FLOAT)
    slots = [b.constant(value) if not isinstance(value, str) else value for value in inputs]
    made = ["y", "z"] if op == "Split" else ["y"]
    b.node(op, *slots, outputs=made, **attributes)
    model = b.model(*made)
    if op == "Cast" and attributes["to"] == TensorProto.BFLOAT16:  # numpy knows it only from here
        model = back_to_float(model)
    expected = runtime(model)
    for name, want in zip([value.name for value in model.graph.output], expected, strict=True):
        found = evaluated(model, name)
        assert found.type == helper.np_dtype_to_tensor_dtype(want.dtype)
        assert found.shape == want.shape
        value: Any = np.asarray(found.load())
        if name == "back":  # what a Cast makes is not rounded to its type
            value = value.astype(ml_dtypes.bfloat16)
        assert value.shape == want.shape
        assert value.dtype == want.dtype or value.dtype.kind not in "iub"
        if want.dtype.kind == "f":
            np.testing.assert_allclose(value.astype(want.dtype), want, rtol=3e-7, atol=0)
        else:
            np.testing.assert_array_equal(value.astype(np.float64), want.astype(np.float64))


def back_to_float(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node.add(op_type="Cast", name="back", input=["y"], output=["back"]).attribute.append(
        helper.make_attribute("to", FLOAT)
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("back", FLOAT, X.shape))
    return model


def test_every_kernel_has_a_row() -> None:
    assert {op for op, *_ in ROWS} == _KERNELS.keys()


@pytest.mark.parametrize(
    "attribute",
    [
        {"value": numpy_helper.from_array(X.astype(np.float32))},
        {"value_float": -1.5},
        {"value_floats": [0.5, -2.0]},
        {"value_int": -7},
        {"value_ints": [3, -1]},
        {
            "sparse_value": helper.make_sparse_tensor(
                helper.make_tensor("values", FLOAT, [2], [1.5, -2.0]),
                helper.make_tensor("at", INT64, [2], [1, 5]),
                [2, 3],
            )
        },
        {
            "sparse_value": helper.make_sparse_tensor(
                helper.make_tensor("values", FLOAT, [2], [1.5, -2.0]),
                helper.make_tensor("at", INT64, [2, 2], [0, 1, 1, 2]),
                [2, 3],
            )
        },
    ],
    ids=["value", "float", "floats", "int", "ints", "sparse flat", "sparse by axis"],
)
def test_every_kind_of_constant_node(attribute: dict[str, Any]) -> None:
    b = Builder(17, FLOAT)
    b.node("Constant", outputs=["y"], **attribute)
    b.node("Identity", "y", outputs=["z"])
    model = b.model("z")
    (want,) = runtime(model)
    for name in ("y", "z"):
        found = evaluated(model, name)
        assert found.type == helper.np_dtype_to_tensor_dtype(want.dtype)
        np.testing.assert_array_equal(found.load(), want)


def test_neither_arithmetic_nor_a_cast_rounds() -> None:
    b = Builder(17, FLOAT)
    y = b.node("Div", b.constant([1.0]), b.constant([3.0]))
    b.node("Cast", y, to=TensorProto.FLOAT16, outputs=["half"])
    model = b.model("half")
    assert evaluated(model, y).float64() == 1 / 3
    half = evaluated(model, "half")
    assert half.type == TensorProto.FLOAT16
    assert half.float64() == 1 / 3


@pytest.mark.parametrize(
    "make",
    [
        lambda b, x: b.node("Add", x, b.constant([1.0])),
        lambda b, x: b.node("Div", b.constant(V), b.constant([1, 0, 1, 1])),
        lambda b, x: b.node("Div", b.constant([FIRST, 1]), b.constant([-1, 1])),
        lambda b, x: b.node("Cast", b.constant([np.nan, 1.0]), to=INT64),
        lambda b, x: b.node("Cast", b.constant([1e30, 1.0]), to=INT64),
        lambda b, x: b.node("Cast", b.constant([256.0]), to=TensorProto.UINT8),
        lambda b, x: b.node("Cast", b.constant([65520.0]), to=TensorProto.FLOAT16),
        lambda b, x: b.node("Cast", b.node("Cast", b.constant([1e-9]), to=TensorProto.FLOAT16), to=TensorProto.BOOL),
        lambda b, x: b.node("Shape", x),
        lambda b, x: b.node("Gather", b.constant(V), x),
        lambda b, x: b.node("RandomNormal", shape=[2]),
        lambda b, x: b.node("Gather", b.constant(V), b.constant([9])),
        lambda b, x: b.node("Expand", b.constant([1.0]), b.constant([1 << 40])),
        lambda b, x: b.node("MatMul", b.constant(np.zeros((1 << 15, 1))), b.constant(np.zeros((1, 1 << 15)))),
        lambda b, x: b.node("MatMul", *2 * [b.constant(np.zeros((2000, 2000)))]),
        lambda b, x: b.node(
            "Where", b.constant([True]), *(b.constant(np.zeros(s)) for s in [(1, 1 << 14), (1 << 14, 1)])
        ),
        lambda b, x: b.node("Equal", b.constant([1.0]), b.constant([1.0])),
        lambda b, x: b.node("Relu", b.constant(V)),
        lambda b, x: b.node("ReduceMean", b.constant(V)),
        lambda b, x: b.node("ReduceSum", b.constant([1.0]), noop_with_empty_axes=1),
        lambda b, x: b.node("Clip", b.constant([1.0]), "", b.constant(0.5)),
    ],
    ids=[
        "dynamic",
        "by zero",
        "overflow",
        "nan",
        "1e30",
        "256",
        "too large for half",
        "zero in half",
        "shape of a dynamic",
        "dynamic indices",
        "random",
        "out of bounds",
        "too large",
        "too large a product",
        "too much work",
        "too large a choice",
        "floats compared",
        "whole numbers",
        "their mean",
        "no axes",
        "a bound left out",
    ],
)
def test_what_is_no_constant(make: Any) -> None:
    b = Builder(17, FLOAT)
    b.nodes.append(helper.make_node("Identity", ["x"], ["kept"]))
    y = make(b, b.input(2, type_=INT64))
    model = helper.make_model(
        helper.make_graph(b.nodes, "test", b.inputs, [onnx.ValueInfoProto(name=y)], b.initializers),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    assert Model(read(model)).main.constant(y) is None


def test_complex_numbers_where_integers_belong_raise_no_warning() -> None:
    assert Constant("shape", TensorProto.COMPLEX64, (1,), lambda: np.array([3 + 1j], np.complex64)).ints() == [3]


def test_a_long_chain_of_constants() -> None:
    b = Builder(17, FLOAT)
    y = b.constant([0.0])
    for _ in range(3000):
        y = b.node("Identity", y)
    assert evaluated(b.model(y), y).float64() == 0


def test_the_bias_of_the_newer_pytorch_exporter() -> None:
    """Expand(CastLike(0, x), Shape(W)[0]): a constant, though its type comes from a dynamic tensor."""
    b = Builder(18)
    x, weight = b.input(3, 4, 5, 6), b.constant(b.normal(5, 4, 1, 1), "weight")
    zero = b.node("CastLike", b.constant(np.array(0)), x)
    size = b.node("Gather", b.node("Shape", weight), b.constant([0]))
    b.bn(b.node("Conv", x, weight, b.node("Expand", zero, size)))
    case = law(b.model(), left=0)
    assert case.ops == ["Conv"]
    assert {tensor.name for tensor in case.model.graph.initializer} == {"weight.folded", "conv.bias.folded"}


def test_parameters_computed_from_constants() -> None:
    b = Builder(17)
    x = b.conv(b.input(3, 4, 5, 6), 4, 1)
    gamma = b.node("Exp", b.constant(b.normal(4)))
    beta = b.node("Squeeze", b.node("Unsqueeze", b.constant(b.normal(4)), b.constant([0])), b.constant([0]))
    mean = b.node("ConstantOfShape", b.constant([4]), value=helper.make_tensor("v", TensorProto.DOUBLE, [1], [0.25]))
    counted = b.node("Range", *(b.constant(np.int64(value)) for value in (1, 5, 1)))
    variance = b.node("Cast", counted, to=TensorProto.DOUBLE)
    b.node("BatchNormalization", x, gamma, beta, mean, variance)
    assert law(b.model(), left=0).ops == ["Conv"]


HALF, BRAIN = TensorProto.FLOAT16, TensorProto.BFLOAT16

ROUNDED: dict[str, tuple[float, float, tuple[int, ...], bool]] = {
    "10 * 0.7 is 7 in float32, and a little less where nothing is rounded": (10.0, 0.7, (), False),
    "a half": (10.0, 0.5, (), True),
    "a half behind the narrower type": (9.0, 0.5, (HALF, FLOAT), True),
    "three quarters": (10.0, 0.75, (), True),
    "241.5 is 242 in bfloat16": (483.0, 0.5, (BRAIN, FLOAT), False),
    "100.5 in float16": (201.0, 0.5, (HALF, FLOAT), True),
    "100.25": (401.0, 0.25, (FLOAT,), True),
    "2049 is 2048 in float16": (683.0, 3.0, (HALF, FLOAT), False),
    "2049 in float32": (683.0, 3.0, (FLOAT,), True),
    "257 is 256 in bfloat16": (257.0, 1.0, (BRAIN, FLOAT), False),
}
"""A number, its factor, what the product is cast to before it becomes an integer, and whether that is known."""


@pytest.mark.parametrize("name", ROUNDED)
def test_a_cast_that_shows_rounding_is_no_constant(name: str) -> None:
    number, factor, types, known = ROUNDED[name]
    b = Builder(17, FLOAT)
    y = b.node("Mul", b.constant([number]), b.constant([factor]))
    for type_ in types:
        y = b.node("Cast", y, to=type_)
    b.node("Cast", y, to=INT64, outputs=["whole"])
    found = Model(read(b.model("whole"))).main.constant("whole")
    assert (found is not None) == known
    if found is not None:
        assert found.load() == runtime(b.model("whole"))[0]


@pytest.mark.parametrize(("step", "known"), [(0.1, False), (0.3, True)])
def test_a_range_whose_length_shows_rounding_is_no_constant(step: float, known: bool) -> None:
    b = Builder(17, FLOAT)
    limit = b.node("Mul", b.constant(np.float32(0.5)), b.constant(np.float32(1.0)))
    b.node("Range", b.constant(np.float32(0.0)), limit, b.constant(np.float32(step)), outputs=["counted"])
    found = Model(read(b.model("counted"))).main.constant("counted")
    assert (found is not None) == known
    if found is not None:
        assert found.shape == runtime(b.model("counted"))[0].shape


def narrowed(b: Builder, x: str) -> str:
    return b.node("Cast", b.constant(b.normal(4, 3, 1, 1), type_=TensorProto.DOUBLE), to=FLOAT)


def narrowed_like_the_data(b: Builder, x: str) -> str:
    return b.node("CastLike", b.constant(b.normal(4, 3, 1, 1), type_=TensorProto.DOUBLE), x)


def cast_to_what_it_is(b: Builder, x: str) -> str:
    return b.node("CastLike", b.node("Sqrt", b.constant(np.abs(b.normal(4, 3, 1, 1)))), x)


@pytest.mark.parametrize("weights", [narrowed, narrowed_like_the_data, cast_to_what_it_is])
def test_a_fold_into_cast_weights_is_verified(weights: Callable[[Builder, str], str]) -> None:
    b = Builder(17, FLOAT)
    x = b.input(1, 3, 5, 5)
    y = b.node("Conv", x, weights(b, x))
    found = optimize(
        b.model(b.node("BatchNormalization", y, *(b.constant(0.5 + np.abs(b.normal(4))) for _ in range(4))))
    )
    assert (found.batchnorm.after, found.warnings) == (0, ())
    assert found.verification is not None
    assert found.verification.status == "equivalent"
