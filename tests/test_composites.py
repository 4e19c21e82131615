"""Operators that are written out stay whole where a runtime would compute them as one."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

import bnfold
from bnfold.graph import Model
from bnfold.solver.state import State
from bnfold.source import read
from tests.builder import Builder
from tests.law import fold, law

SHAPE = (2, 6, 5, 4)
TOKENS = (2, 5, 6)


def gelu(b: Builder, x: str, last: bool = True, root: float = 2.0**0.5, half: float = 0.5) -> str:
    erf = b.node("Add", b.node("Erf", b.node("Div", x, b.constant(root, "root"))), b.constant(1.0, "one"))
    if last:
        return b.node("Mul", b.node("Mul", x, erf), b.constant(half, "half"))
    return b.node("Mul", b.node("Mul", x, b.constant(half, "half")), erf)


def normalized(b: Builder, x: str, scale: bool = True, shift: bool = True) -> str:
    off = b.node("Sub", x, b.node("ReduceMean", x, axes=[-1]))
    variance = b.node("ReduceMean", b.node("Pow", off, b.constant(2.0, "two")), axes=[-1])
    y = b.node("Div", off, b.node("Sqrt", b.node("Add", variance, b.constant(1e-5, "epsilon"))))
    y = b.node("Mul", y, b.constant(b.normal(6), "gamma")) if scale else y
    return b.node("Add", y, b.constant(b.normal(6), "beta")) if shift else y


def fused(model: onnx.ModelProto, tmp_path: str) -> list[str]:
    """The operators that ONNX Runtime makes of a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/fused.onnx"
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(f"{tmp_path}/fused.onnx").graph.node]


@pytest.mark.parametrize("last", [True, False])
def test_a_gelu_between_convolutions_stays_whole(last: bool, tmp_path: str) -> None:
    b = Builder(type_=TensorProto.FLOAT)
    b.conv(b.bn(gelu(b, b.bn(b.conv(b.input(*SHAPE), 6, 1)), last)), 4, 1)
    model = b.model()
    result = bnfold.optimize(model, samples=1)
    assert result.proto is not None
    assert result.batchnorm.after == 0
    assert "Gelu" in fused(result.proto, tmp_path)
    assert {affine.op for affine in result.affines} == {"BatchNormalization"}, "its constants are none of their own"


@pytest.mark.parametrize(("root", "half"), [(1.5, 0.5), (2.0**0.5, 0.6)])
def test_what_only_looks_like_a_gelu_is_taken_apart(root: float, half: float) -> None:
    b = Builder()
    b.conv(gelu(b, b.conv(b.input(*SHAPE), 6, 1), root=root, half=half), 4, 1)
    case = law(b.model())
    assert case.left == 1, case.codes()  # the one that is added to erf


def test_a_gelu_whose_inner_tensor_is_an_output_is_none() -> None:
    b = Builder()
    x = b.conv(b.input(*SHAPE), 6, 1)
    y = b.conv(gelu(b, x), 4, 1)
    (erf,) = (node.output[0] for node in b.nodes if node.op_type == "Erf")
    assert law(b.model(erf, y)).left == 1


def test_the_nodes_of_a_gelu_agree_to_stay_as_they_are() -> None:
    """They are asked where a fold beside them is taken back."""
    b = Builder()
    gelu(b, b.conv(b.input(*SHAPE), 6, 1))
    state = State(Model(read(b.model())).graphs[0])
    for node in state.graph.nodes:
        (accept,) = state.ask(node, {}, everything_fixed=True)
        assert (accept.assign, accept.edits) == ({}, ())


def test_a_batchnorm_without_another_way_opens_the_gelu() -> None:
    b = Builder()
    b.bn(gelu(b, b.conv(b.input(*SHAPE), 6, 1)), gamma=[1, -2, 0.5, 2, 1e-3, -1], beta=0, mean=0)
    case = law(b.model())
    assert "BatchNormalization" not in case.ops


def test_a_scale_does_not() -> None:
    b = Builder()
    b.per_channel("Mul", gelu(b, b.conv(b.input(*SHAPE), 6, 1)), [1, -2, 0.5, 2, 1e-3, -1], name="scale")
    case = fold(b.model())
    assert "part-of-operator" in case.codes()["scale"]


def test_a_layer_normalization_keeps_its_scale_and_shift(tmp_path: str) -> None:
    b = Builder(type_=TensorProto.FLOAT)
    b.matmul(normalized(b, b.matmul(b.input(*TOKENS), 6)), 4)
    model = b.model()
    result = bnfold.optimize(model, samples=1)
    assert result.proto is not None
    assert "LayerNormalization" in fused(result.proto, tmp_path)
    assert "gamma" in {tensor.name for tensor in result.proto.graph.initializer}


def test_its_scale_and_shift_take_up_others() -> None:
    b = Builder()
    y = normalized(b, b.matmul(b.input(*TOKENS), 6))
    b.node("Tanh", b.node("Mul", y, b.constant(b.normal(6), "scale"), name="behind"))
    case = law(b.model())
    assert "behind" not in {node.name for node in case.model.graph.node}
