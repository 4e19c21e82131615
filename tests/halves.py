"""Models to convert to a smaller type, and what their conversions are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold.certificate import Certificate, certify
from bnfold.folding import Folder, Wishes
from bnfold.graph import Model
from bnfold.patch import patch, witness_of
from bnfold.plan import Rewrite
from bnfold.precision import Wanted, converted, type_of
from bnfold.precision.convert import Converted
from bnfold.source import read
from bnfold.witness import Witness
from bnfold.write import folded
from tests.builder import Builder

FLOAT, HALF, BRAIN = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
SAME: dict[str, Any] = {"pads": [1, 1, 1, 1]}


def builder(opset: int = 17, ir: int = 8) -> Builder:
    return Builder(opset, FLOAT, ir, seed=3)


def residual(b: Builder | None = None) -> onnx.ModelProto:
    """Two convolutions with BatchNormalization, a skip connection, a classifier; two outputs."""
    b = b or builder()
    x = b.node("Relu", b.bn(b.conv(b.input("N", 3, 9, 12), 6, 3, **SAME)))
    y = b.bn(b.conv(x, 6, 3, **SAME))
    y = b.node("Relu", b.node("Add", y, x), name="sum")
    y = b.node("GlobalAveragePool", y)
    flat = b.node("Flatten", y, name="flat")
    return b.model(b.gemm(flat, 4), flat)


@dataclass
class Made:
    """A fold, and what became of it in the smaller type."""

    original: onnx.ModelProto
    rewrite: Rewrite
    conversion: Converted
    proto: onnx.ModelProto
    exact: dict[str, Any] = field(default_factory=dict)
    """What the new constants are before anything is rounded, by name."""

    @property
    def witness(self) -> Witness:
        return replace(witness_of(self.rewrite), narrowed=self.conversion.witness)

    def certificate(self, proto: onnx.ModelProto | None = None, witness: Witness | None = None) -> Certificate:
        return certify(Model(read(self.original)), Model(read(proto or self.proto)), witness or self.witness)

    @property
    def kept(self) -> dict[str, str]:
        return {kept.node: kept.code for kept in self.conversion.kept}

    def copy(self) -> onnx.ModelProto:
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return proto


def made(model: onnx.ModelProto, precision: str = "fp16", keep: tuple[str, ...] = ()) -> Made:
    """Fold and convert, without proof."""
    rewrite = Folder(Model(read(model))).solve(Wishes(narrow=type_of(precision))).rewrite
    patched = patch(rewrite.model, rewrite.plan)
    exact = {tensor.name: edit.value() for tensor, edit in patched.pending}
    conversion = converted(patched, rewrite.model.source, Wanted(type_of(precision), keep))
    proto = folded(rewrite, patched=conversion.patched)
    return Made(model, rewrite, conversion, proto, exact)


def constants(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def casts(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if ".cast_to_" in node.name]


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor of the main graph, by strict inference: a missing cast raises."""
    found = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    every = {value.name: value.type.tensor_type.elem_type for value in (*found.input, *found.output, *found.value_info)}
    return every | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def body(name: str, nodes: list[onnx.NodeProto], *outputs: str) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(output, FLOAT, None) for output in outputs]
    return helper.make_graph(nodes, name, [], values)


def captured(b: Builder) -> onnx.ModelProto:
    """An If whose bodies read a tensor, a weight and each other's names."""
    x = b.conv(b.input(2, 3, 9, 12), 6, 3, **SAME)
    y, weight = b.node("Relu", b.bn(x)), b.constant(b.normal(5, 6, 1, 1), "weight")
    then = body("then", [helper.make_node("Conv", [y, weight], ["z"]), helper.make_node("Relu", ["z"], ["r"])], "r")
    other = body("else", [helper.make_node("Conv", [y, weight], ["z"])], "z")
    condition = b.input(1, name="condition", type_=TensorProto.BOOL)
    b.nodes.append(helper.make_node("If", [condition], ["chosen"], name="if", then_branch=then, else_branch=other))
    both = b.node("Add", "chosen", b.node("Conv", y, weight), name="both")
    model = b._proto((both, y))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(both, FLOAT, [2, 5, 9, 12]))
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info(y, FLOAT, [2, 6, 9, 12]))
    model.graph.value_info.append(helper.make_tensor_value_info("chosen", FLOAT, [2, 5, 9, 12]))
    return model


Case = Callable[[], onnx.ModelProto]


def _resized(opset: int) -> Case:
    def make() -> onnx.ModelProto:
        b = builder(opset)
        y = b.bn(b.conv(b.input(2, 3, 6, 8), 4, 3))
        scales = b.constant(np.array([1, 1, 2, 2], np.float32), "scales")
        y = b.node("Resize", y, scales) if opset < 11 else b.node("Resize", y, b.constant(np.zeros(0), "roi"), scales)
        return b.model(b.node("Relu", y))

    return make


def _measured() -> onnx.ModelProto:
    """A Resize to half of a size that is computed in floats."""
    b = builder()
    x = b.bn(b.conv(b.input(2, 3, "H", 12), 4, 3))
    size = b.node("Slice", b.node("Shape", x), b.constant([2], "start"), b.constant([4], "end"))
    half = b.node("Mul", b.node("Cast", size, to=FLOAT, name="as_float"), b.constant(np.array([0.5]), "half"))
    whole = b.node("Cast", b.node("Floor", half), to=TensorProto.INT64, name="as_int")
    wanted = b.node("Concat", b.constant([2, 4], "front"), whole, axis=0)
    return b.model(b.node("Resize", x, "", "", wanted))


def _casting() -> onnx.ModelProto:
    """Casts of the model's own, an integer input, an integer output."""
    b = builder()
    ids = b.input(3, 5, name="ids", type_=TensorProto.INT64)
    y = b.node("Gather", b.constant(b.normal(9, 8), "table"), ids)
    y = b.node("Cast", b.node("Cast", y, to=TensorProto.DOUBLE, name="wide"), to=FLOAT, name="back")
    y = b.matmul(y, 6, bias=True)
    y = b.per_channel("Mul", y, b.rng.uniform(0.5, 2, 6), axis=-1)
    return b.model(y, b.node("ArgMax", y, axis=-1))


def _constant_nodes() -> onnx.ModelProto:
    b = builder()
    weight = b.node("Constant", value=numpy_helper.from_array(b.normal(6, 3, 3, 3).astype(np.float32)))
    y = b.bn(b.node("Conv", b.input(2, 3, 7, 9), weight))
    bound = b.node("Constant", value=numpy_helper.from_array(np.array(0.7, np.float32)))
    return b.model(b.node("Max", b.node("Add", y, bound), bound, name="largest"))


def _shared() -> onnx.ModelProto:
    """A weight for a reader of each type."""
    b = builder()
    x, weight = b.input(6, 6, name="x"), b.constant(b.normal(6, 6), "weight")
    y = b.node("MatMul", x, weight)
    return b.model(b.node("Mul", b.node("Max", y, b.input(6, 6, name="z")), b.constant(0.3)), b.node("Max", weight, y))


def _passed_on() -> onnx.ModelProto:
    """An output that is an input, one that is an initializer, one that two readers read."""
    b = builder()
    x = b.input(2, 3, 7, 9)
    y = b.bn(b.conv(x, 4, 3))
    model = b.model(y, b.node("Relu", y))
    weight = b.initializers[0]
    model.graph.output.append(helper.make_tensor_value_info(weight.name, FLOAT, list(weight.dims)))
    return model


def _separable() -> onnx.ModelProto:
    b = builder()
    y = b.bn(b.conv(b.input(2, 4, 9, 9), 4, 3, group=4, **SAME))
    y = b.bn(b.conv_transpose(b.node("LeakyRelu", y, alpha=0.2), 6, 3))
    return b.model(b.node("Softmax", b.node("Flatten", y)))


def _branches() -> onnx.ModelProto:
    """Branches that become one convolution."""
    b = builder()
    x = b.input(2, 64, 9, 9)
    y = b.node("Add", b.bn(b.conv(x, 64, 3, bias=False, **SAME)), b.bn(b.conv(x, 64, 1, bias=False)))
    return b.model(b.node("Relu", b.node("Add", y, b.bn(x))))


def _function() -> onnx.ModelProto:
    from tests.zoo.hand import CASES

    return CASES["hand_bn_in_function"].model()


CASES: dict[str, Case] = {
    "residual": residual,
    **{f"opset {opset}": (lambda opset=opset: residual(builder(opset))) for opset in (7, 9, 11, 13, 18, 21, 22)},  # type: ignore[misc]
    "IR 3": lambda: residual(builder(9, 3)),
    "an If that captures": lambda: captured(builder()),
    **{f"Resize {opset}": _resized(opset) for opset in (10, 11, 13, 19)},
    "sizes in floats": _measured,
    "casts and integers": _casting,
    "Constant nodes": _constant_nodes,
    "a weight of two readers": _shared,
    "outputs that are no results": _passed_on,
    "depthwise and transposed": _separable,
    "branches": _branches,
    "a function": _function,
}
