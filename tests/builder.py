"""A small graph builder: every test makes its models here.

Values are seeded and awkward on purpose: signed weights, channels that differ from each other, nothing square unless
a test asks for it. Floats are float64 unless a test asks for another type, so that rounding is float64's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float64]
Dim = int | str

KINDS = "upszctbn"
"""The affines of :meth:`Builder.affine`, by letter."""


class Builder:
    """Adds nodes one by one; every method returns the name of what it made."""

    def __init__(self, opset: int = 17, type_: int = TensorProto.DOUBLE, ir: int = 8, seed: int = 0) -> None:
        self.opset, self.type, self.ir = opset, type_, ir
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[TensorProto] = []
        self._names: set[str] = set()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._declared: dict[str, tuple[int, ...]] = {}

    def name(self, wanted: str) -> str:
        """A name that is not taken."""
        name, n = wanted, 1
        while name in self._names:
            n += 1
            name = f"{wanted}{n}"
        self._names.add(name)
        return name

    def input(self, *shape: Dim, name: str = "x", type_: int | None = None) -> str:
        """A graph input."""
        name = self.name(name)
        self.inputs.append(helper.make_tensor_value_info(name, type_ or self.type, list(shape)))
        return name

    def constant(self, values: ArrayLike, name: str = "c", type_: int | None = None) -> str:
        """An initializer: floats in the builder's type, integers in int64."""
        array = np.asarray(values)
        if array.dtype.kind == "f":
            array = array.astype(helper.tensor_dtype_to_np_dtype(type_ or self.type))
        name = self.name(name)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def node(
        self, op: str, *inputs: str, name: str | None = None, outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        """Any node; returns its first output, which has the node's name unless `outputs` says otherwise."""
        label = self.name(name or op.lower())
        made = list(outputs) or [label]
        self.nodes.append(helper.make_node(op, list(inputs), made, name=label, **attributes))
        return made[0]

    def normal(self, *shape: int) -> Floats:
        """Signed random values, no channel like another."""
        return np.asarray(self.rng.normal(size=shape))

    def shape(self, name: str) -> tuple[int, ...]:
        """The static shape of a value; symbolic dimensions count as 1."""
        if name not in self._shapes:
            for value in self._inferred(self._proto(())):
                dims = value.type.tensor_type.shape.dim
                self._shapes[value.name] = tuple(dim.dim_value or 1 for dim in dims)
            self._shapes |= {tensor.name: tuple(tensor.dims) for tensor in self.initializers}
        return self._shapes[name]

    def declare(self, name: str, *shape: int) -> None:
        """Tell the builder, not the model, a shape that inference does not find."""
        self._shapes[name] = shape
        self._declared[name] = shape

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The model; without names, every value that nothing reads is an output."""
        read = {name for node in self.nodes for name in node.input}
        made = [name for node in self.nodes for name in node.output if name and name not in read]
        model = self._proto(outputs or made)
        types = {value.name: value for value in self._inferred(model)}
        del model.graph.output[:]
        model.graph.output.extend(types[name] for name in outputs or made)
        return model

    def _proto(self, outputs: Sequence[str]) -> onnx.ModelProto:
        untyped = [onnx.ValueInfoProto(name=name) for name in outputs]
        inputs = list(self.inputs)
        if self.ir < 4:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in self.initializers]
        graph = helper.make_graph(self.nodes, "test", inputs, untyped, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=self.ir)

    def _inferred(self, model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
        """Every value with its type and shape; operators older than shape inference are taken for those of opset 6."""
        newer = onnx.ModelProto()
        newer.CopyFrom(model)
        newer.opset_import[0].version = max(self.opset, 6)
        for node in newer.graph.node:
            if node.op_type == "Reshape" and self.opset < 5:
                shape = numpy_helper.from_array(np.array(node.attribute.pop().ints), f"{node.name}.shape")
                newer.graph.initializer.append(shape)
                node.input.append(shape.name)
            if node.op_type == "GroupNormalization":  # inference does not know it
                node.CopyFrom(helper.make_node("Identity", [node.input[0]], list(node.output)))
        known = (helper.make_tensor_value_info(name, self.type, dims) for name, dims in self._declared.items())
        newer.graph.value_info.extend(known)
        graph = onnx.shape_inference.infer_shapes(newer, data_prop=True).graph
        return [*graph.input, *graph.output, *graph.value_info]

    # ------------------------------------------------------------------------------------------------ layers

    def conv(
        self, x: str, out: int, *kernel: int, group: int = 1, bias: bool = True, scale: float = 1.0, **attributes: Any
    ) -> str:
        """A Conv; one kernel size for every spatial axis, or one each."""
        rank, channels = len(self.shape(x)) - 2, self.shape(x)[1]
        sizes = kernel if len(kernel) == rank else (kernel[0] if kernel else 1,) * rank
        inputs = [x, self.constant(scale * self.normal(out, channels // group, *sizes), "conv.weight")]
        if bias:
            inputs.append(self.constant(self.normal(out), "conv.bias"))
        return self.node("Conv", *inputs, group=group, **attributes)

    def conv_transpose(
        self, x: str, out: int, *kernel: int, group: int = 1, bias: bool = True, **attributes: Any
    ) -> str:
        """A ConvTranspose."""
        rank, channels = len(self.shape(x)) - 2, self.shape(x)[1]
        sizes = kernel if len(kernel) == rank else (kernel[0],) * rank
        inputs = [x, self.constant(self.normal(channels, out // group, *sizes), "deconv.weight")]
        if bias:
            inputs.append(self.constant(self.normal(out), "deconv.bias"))
        return self.node("ConvTranspose", *inputs, group=group, **attributes)

    def gemm(self, x: str, out: int, bias: Sequence[int] | None = (-1,), **attributes: Any) -> str:
        """A Gemm; `bias` is the shape of C, with -1 for the number of outputs; None leaves it out."""
        columns = self.shape(x)[0 if attributes.get("transA") else 1]
        weight = self.normal(out, columns) if attributes.get("transB") else self.normal(columns, out)
        inputs = [x, self.constant(weight, "gemm.weight")]
        if bias is not None:
            inputs.append(self.constant(self.normal(*(out if dim < 0 else dim for dim in bias)), "gemm.bias"))
        if self.opset < 7 and bias is not None:
            attributes = {"broadcast": 1, **attributes}
        return self.node("Gemm", *inputs, **attributes)

    def matmul(self, x: str, out: int, bias: bool = False) -> str:
        """A MatMul by a constant on the right, perhaps with the Add of its bias."""
        y = self.node("MatMul", x, self.constant(self.normal(self.shape(x)[-1], out), "matmul.weight"))
        return self.node("Add", y, self.constant(self.normal(out), "matmul.bias")) if bias else y

    def absorber(self, x: str, out: int = 5, axis: int = 1) -> str:
        """What can take up any affine on its input or its output: a 1x1 Conv, a Gemm, or a MatMul on the last axis."""
        rank = len(self.shape(x))
        if axis % rank == rank - 1 and rank > 2:
            return self.matmul(x, out, bias=True)
        return self.gemm(x, out) if rank == 2 else self.conv(x, out, 1)

    # ----------------------------------------------------------------------------------------------- affines

    def bn(
        self,
        x: str,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
        mean: ArrayLike | None = None,
        variance: ArrayLike | None = None,
        name: str = "bn",
        parameters: int | None = None,
        **attributes: Any,
    ) -> str:
        """A BatchNormalization at inference, in the form of the builder's opset."""
        channels = self.shape(x)[1]
        values = {
            "gamma": self.normal(channels) if gamma is None else gamma,
            "beta": self.normal(channels) if beta is None else beta,
            "mean": self.normal(channels) if mean is None else mean,
            "variance": self.rng.uniform(0.2, 2.0, channels) if variance is None else variance,
        }
        full = [np.broadcast_to(np.asarray(value, np.float64), (channels,)) for value in values.values()]
        slots = [self.constant(v, f"{name}.{what}", parameters) for what, v in zip(values, full, strict=True)]
        if self.opset < 7:
            attributes = {"is_test": 1, **attributes}
        if self.opset < 6:
            attributes = {"consumed_inputs": [0, 0, 0, 1, 1], **attributes}
        return self.node("BatchNormalization", x, *slots, name=name, **attributes)

    def per_channel(
        self, op: str, x: str, values: ArrayLike, axis: int = 1, left: bool = False, name: str | None = None
    ) -> str:
        """Mul, Div, Add or Sub by a constant vector along one axis, in the form of the builder's opset."""
        rank, vector = len(self.shape(x)), np.asarray(values, np.float64)
        if self.opset < 7:
            forms: dict[str, Any] = {"broadcast": 1} | ({"axis": axis % rank} if vector.ndim else {})
            return self.node(op, x, self.constant(vector, f"{op.lower()}.constant"), name=name, **forms)
        if vector.ndim:
            vector = vector.reshape(vector.shape + (1,) * (rank - 1 - axis % rank))
        constant = self.constant(vector, f"{op.lower()}.constant")
        return self.node(op, *((constant, x) if left else (x, constant)), name=name)

    def affine(self, x: str, kind: str, axis: int = 1) -> str:
        """One affine node, by letter.

        u: Mul by one number; p: Mul, positive; s: Mul, signed; z: Mul, positive and one zero; c: c - x; t: Add;
        b: BatchNormalization with positive gammas, one channel of tiny variance; n: negative, zero and tiny gammas.
        The last two stand on axis 1 only: elsewhere they are the Mul and the Add that a BN is.
        """
        channels = self.shape(x)[axis]
        positive = self.rng.uniform(0.4, 2.0, channels)
        signed = positive * np.where(np.arange(channels) % 3 == 1, -1.0, 1.0)
        awkward = np.where(np.arange(channels) % 4 == 2, 0.0, np.where(np.arange(channels) % 4 == 3, 1e-3, signed))
        if kind == "u":
            return self.per_channel("Mul", x, 0.7)
        if kind == "p":
            return self.per_channel("Mul", x, positive, axis)
        if kind == "s":
            return self.per_channel("Mul", x, signed, axis)
        if kind == "z":
            return self.per_channel("Mul", x, np.where(np.arange(channels) == channels - 1, 0.0, positive), axis)
        if kind == "c":
            if self.opset < 7:
                return self.per_channel("Mul", x, -np.ones(channels), axis)
            return self.per_channel("Sub", x, self.normal(channels), axis, left=True)
        if kind == "t":
            return self.per_channel("Add", x, self.normal(channels), axis)
        assert kind in ("b", "n")
        if axis != 1:
            scaled = self.per_channel("Mul", x, positive if kind == "b" else awkward, axis)
            return self.per_channel("Add", scaled, self.normal(channels), axis)
        variance = self.rng.uniform(0.2, 2.0, channels)
        variance[0] = 1e-6 if kind == "b" else 0.0
        return self.bn(x, gamma=positive if kind == "b" else awkward, variance=variance)

    # -------------------------------------------------------------------------- operators whose form has moved

    def squeeze(self, x: str, *axes: int) -> str:
        """Squeeze: axes are an attribute before opset 13."""
        if self.opset < 13:
            return self.node("Squeeze", x, axes=list(axes))
        return self.node("Squeeze", x, self.constant(list(axes), "axes"))

    def unsqueeze(self, x: str, *axes: int) -> str:
        """Unsqueeze: axes are an attribute before opset 13."""
        if self.opset < 13:
            return self.node("Unsqueeze", x, axes=list(axes))
        return self.node("Unsqueeze", x, self.constant(list(axes), "axes"))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape: the shape is an attribute before opset 5."""
        if self.opset < 5:
            return self.node("Reshape", x, shape=list(shape))
        return self.node("Reshape", x, self.constant(list(shape), "shape"))

    def dropout(self, x: str, training: bool | None = None) -> str:
        """Dropout: is_test before opset 7, training_mode as an input from opset 12."""
        if self.opset < 7:
            return self.node("Dropout", x, is_test=int(not training))
        if self.opset < 12 or training is None:
            return self.node("Dropout", x)
        mode = self.constant(np.array(training), "training")
        return self.node("Dropout", x, self.constant(0.5, "ratio", TensorProto.FLOAT), mode)

    def prelu(self, x: str, slopes: ArrayLike | None = None) -> str:
        """PRelu with one slope for each channel, negative ones too."""
        rank, channels = len(self.shape(x)), self.shape(x)[1]
        values = self.normal(channels) if slopes is None else np.asarray(slopes)
        return self.node("PRelu", x, self.constant(values.reshape(-1, *(1,) * (rank - 2 if self.opset >= 7 else 0))))
