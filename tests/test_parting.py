"""Where two models part: the first tensor that is not the same, or the same up to scale and shift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from bnfold import optimize, verify
from bnfold.equivalence.parting import Parting
from bnfold.equivalence.result import Verification
from tests.builder import Builder
from tests.program import bnfold, saved

Change = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def stacked(batch: int | str = "N", depth: int = 4) -> onnx.ModelProto:
    """conv, bn and relu, `depth` times."""
    b = Builder(type_=TensorProto.FLOAT)
    y = b.input(batch, 3, 10, 14)
    for _ in range(depth):
        y = b.node("Relu", b.bn(b.conv(y, 4, 3, pads=[1, 1, 1, 1], scale=0.3)))
    return b.model(b.node("GlobalAveragePool", y))


def dense(batch: int | str = "N") -> onnx.ModelProto:
    b = Builder(type_=TensorProto.FLOAT)
    y = b.input(batch, 6)
    for _ in range(3):
        y = b.node("Relu", b.bn(b.gemm(y, 6)))
    return b.model(b.gemm(y, 5))


def tokens(batch: int | str = "N", length: int = 7) -> onnx.ModelProto:
    """The channels last."""
    b = Builder(type_=TensorProto.FLOAT)
    y = b.input(batch, length, 6)
    for _ in range(3):
        y = b.node("Relu", b.node("Mul", b.matmul(y, 6, bias=True), b.constant(np.linspace(0.5, 2, 6), "scale")))
    return b.model(b.matmul(y, 5, bias=True))


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    result = optimize(model, verify=False)
    assert result.proto is not None
    assert len(result.proto.graph.node) < len(model.graph.node)
    return result.proto


def changed(model: onnx.ModelProto, name: str, change: Change) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (tensor,) = (each for each in copy.graph.initializer if each.name == name)
    values = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return copy


def element(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One weight of one channel is off by 1%: no scale and shift explains that."""
    flat = values.reshape(-1)
    flat[np.abs(flat).argmax()] *= 1.01
    return values


def uneven(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Every weight is off by up to 2%."""
    return np.asarray(values * (1 + 0.02 * np.sin(np.arange(values.size)).reshape(values.shape)))


def channel(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A whole channel is scaled: its output is stored otherwise, and its reader does not know."""
    values[1] *= 1.02
    return values


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every tensor inside, and every node, has another name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = {value.name for value in [*copy.graph.input, *copy.graph.output]}
    for node in copy.graph.node:
        node.name = f"n.{node.name}"
        for names in (node.input, node.output):
            names[:] = [name if name in kept or not name else f"t.{name}" for name in names]
    for tensor in copy.graph.initializer:
        tensor.name = f"t.{tensor.name}"
    return copy


def parting(found: Verification) -> Parting:
    assert found.status == "different"
    assert found.parting is not None
    return found.parting


@pytest.mark.parametrize("layer", [1, 3])
def test_the_first_tensor_that_differs_is_named(layer: int) -> None:
    model = stacked()
    name = "" if layer == 1 else str(layer)
    found = parting(verify(model, changed(model, f"conv.weight{name}", element), samples=1))
    assert (found.matched_by, found.tensor, found.op) == ("name", f"conv{name}", "Conv")
    assert (found.agree, found.matched, found.stored_otherwise) == (3 * (layer - 1), 13, 0)
    assert "times it" in found.problem


def test_a_scaled_channel_is_stored_otherwise_and_its_reader_parts() -> None:
    model = stacked()
    found = parting(verify(model, changed(model, "conv.weight2", channel), samples=1))
    assert found.first_stored == "conv2"
    assert found.tensor in ("relu2", "conv3")


@pytest.mark.parametrize("build", [stacked, lambda: stacked(1), dense, lambda: dense(1), tokens, lambda: tokens(1, 1)])
def test_what_a_fold_stores_otherwise_is_no_difference(build: Callable[[], onnx.ModelProto]) -> None:
    """A fold that is right but for one weight near the end: the folds before it are not blamed."""
    model, right = build(), folded(build())
    assert verify(model, right, samples=1).parting is None
    last = [tensor.name for tensor in right.graph.initializer if len(tensor.dims) > 1][-1]
    wrong = changed(right, last, uneven)
    reader = next(node for node in right.graph.node if last in node.input)
    found = parting(verify(model, wrong, samples=1))
    produced = {node.output[0] for node in model.graph.node}
    assert found.tensor in {reader.output[0], *(n.output[0] for n in right.graph.node if reader.output[0] in n.input)}
    assert found.tensor in produced
    assert found.agree >= 3


def test_an_output_may_not_be_stored_otherwise() -> None:
    model = dense()
    found = parting(verify(model, changed(model, "gemm.bias4", lambda values: values + 0.5), samples=1))
    assert (found.tensor, found.agree, found.stored_otherwise) == ("gemm4", 9, 0)


def test_other_names_are_matched_by_position() -> None:
    model = stacked()
    found = parting(verify(model, renamed(changed(model, "conv.weight3", element)), samples=1))
    assert (found.matched_by, found.tensor, found.other) == ("position", "conv3", "t.conv3")
    right = folded(model)
    last = right.graph.initializer[-1].name
    found = parting(verify(model, renamed(changed(right, last, lambda values: values + 1)), samples=1))
    assert found.matched_by == "position"
    assert found.matched >= 5


def test_names_that_mean_other_tensors_are_not_believed() -> None:
    one, two = stacked(), stacked()
    names = [node.output[0] for node in two.graph.node[:-1]]
    swapped = dict(zip(names, names[1:] + names[:1], strict=True))
    for node in two.graph.node:
        node.output[0] = swapped.get(node.output[0], node.output[0])
        node.input[0] = swapped.get(node.input[0], node.input[0])
    found = parting(verify(one, changed(two, "conv.weight4", element), samples=1))
    assert (found.tensor, found.op) == ("conv4", "Conv")


def test_unrelated_models_have_their_outputs_in_common_or_nothing() -> None:
    b = Builder(type_=TensorProto.FLOAT)
    one = b.model(b.node("GlobalMaxPool", b.input("N", 3, 10, 14), outputs=["y"]))
    b = Builder(type_=TensorProto.FLOAT)
    positive = b.node("Abs", b.input("N", 3, 10, 14), outputs=["a"])
    two = b.model(b.node("ReduceMean", positive, axes=[2, 3], outputs=["z"]))
    found = parting(verify(one, two))
    assert (found.matched_by, found.tensor, found.other, found.agree) == ("position", "y", "z", 0)
    found = parting(verify(one, b.model("z", positive)))
    assert (found.matched_by, found.matched) == ("nothing", 0)
    assert "no tensor of one model was found in the other" in str(found)


def test_other_names_of_inputs_do_not_hinder() -> None:
    model = stacked()
    other = changed(model, "conv.weight2", element)
    other.graph.input[0].name = other.graph.node[0].input[0] = "image"
    found = verify(model, other)
    assert "the inputs are image" in found.problems[0]
    assert parting(found).tensor == "conv2"


def test_it_is_looked_for_only_where_asked() -> None:
    model = stacked()
    assert verify(model, changed(model, "conv.weight", element), samples=1, locate=False).parting is None


def test_the_command_line_names_it(tmp_path: Any) -> None:
    model = saved(stacked(), tmp_path / "a.onnx")
    other = saved(changed(stacked(), "conv.weight2", element), tmp_path / "b.onnx")
    done = bnfold("verify", model, other)
    assert (done.code, done.out) == (3, "different\n")
    (line,) = (line for line in done.err.splitlines() if line.startswith("  they part at"))
    assert "'conv2', output of Conv 'conv2': its error" in line
    assert line.endswith("before it 3 of 13 tensors matched by name agree")


def test_without_inputs_in_common_it_says_so() -> None:
    b = Builder(type_=TensorProto.FLOAT)
    two = b.model(b.node("Add", b.input("N", 3, 10, 14), b.input("N", 3, 10, 14)))
    found = verify(stacked(), two)
    assert found.parting is None
    assert found.notes == ("where the two part was not found: one has 1 inputs, the other 2",)
