"""Corner cases: where the parts come from, who else reads them, of which type they are, in what they are contained.

Many are traps: the fold that looks right changes the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from tests.builder import Builder
from tests.zoo import bodies
from tests.zoo.bodies import IMAGE, SAME, C


@dataclass(frozen=True)
class Case:
    """A graph; `make` returns its outputs where they are not just what nothing reads."""

    left: int
    make: Callable[[Builder], str | tuple[str, ...]]
    opset: int = 17
    ir: int = 8
    type_: int = TensorProto.FLOAT
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda model: model
    """What the builder cannot do."""

    def model(self) -> onnx.ModelProto:
        """The model."""
        builder = Builder(self.opset, self.type_, self.ir, seed=7)
        outputs = self.make(builder)
        return self.finish(builder.model(*outputs) if isinstance(outputs, tuple) else builder.model())


def conv(b: Builder, x: str = "", **attributes: Any) -> str:
    """A padded 3x3 convolution to eight channels."""
    return b.conv(x or b.input(*IMAGE), C, 3, **({} if "auto_pad" in attributes else SAME), **attributes)


def conv_bn(b: Builder, **attributes: Any) -> str:
    return b.bn(conv(b), **attributes)


def transposed(b: Builder, out: int = 12, group: int = 1, bias: bool = False) -> str:
    return b.bn(b.conv_transpose(b.input(1, C, 6, 5), out, 4, group=group, bias=bias, strides=[2, 2], pads=[1] * 4))


def two_outputs(b: Builder) -> tuple[str, ...]:
    y = conv(b)
    return y, b.bn(y)


def two_batchnorms(b: Builder) -> str:
    y = conv(b)
    b.bn(y)
    return b.bn(y)


def two_readers(b: Builder) -> str:
    y = conv_bn(b)
    b.node("Relu", y)
    return b.node("Sigmoid", y)


def shared_parameters(b: Builder) -> str:
    x, values = b.input(*IMAGE), (b.normal(C), b.normal(C), b.normal(C), b.rng.uniform(0.5, 2, C))
    names = [b.constant(value, "shared") for value in values]
    b.node("BatchNormalization", conv(b, x), *names)
    return b.node("BatchNormalization", conv(b, x), *names)


def dynamic_scale(b: Builder) -> str:
    names = [b.constant(value) for value in (b.normal(C), b.normal(C), b.rng.uniform(0.5, 2, C))]
    return b.node("BatchNormalization", conv(b), b.input(C, name="scale"), *names)


def weight_via(b: Builder, op: str) -> str:
    weight, x = b.normal(C, 4, 3, 3), b.input(*IMAGE)
    if op == "Constant":
        made = b.node(op, value=onnx.numpy_helper.from_array(weight.astype(np.float32)))
    elif op == "Transpose":
        made = b.node(op, b.constant(weight.transpose(2, 3, 1, 0)), perm=[3, 2, 0, 1])
    elif op == "Reshape":
        made = b.reshape(b.constant(weight.reshape(C, -1)), C, 4, 3, 3)
    else:
        made = b.node(op, b.constant(weight))
    return b.bn(b.node("Conv", x, made, **SAME))


def constant_parameters(b: Builder) -> str:
    y, values = conv(b), (b.normal(C), b.normal(C), b.normal(C), b.rng.uniform(0.5, 2, C))
    made = [b.node("Constant", value=onnx.numpy_helper.from_array(value.astype(np.float32))) for value in values]
    return b.node("BatchNormalization", y, *made)


def overridable_weight(b: Builder) -> str:
    y = conv_bn(b)
    weight = b.initializers[0]
    b.inputs.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    return y


def weight_is_output(b: Builder) -> tuple[str, ...]:
    y = conv_bn(b)
    return y, b.initializers[0].name


def then(op: str, **attributes: Any) -> Callable[[Builder], str]:
    return lambda b: b.bn(b.node(op, conv(b), **attributes))


CASES: dict[str, Case] = {
    "conv_bias_bn": Case(0, conv_bn),
    "conv_empty_bias_bn": Case(
        0, lambda b: b.bn(b.node("Conv", b.input(*IMAGE), b.constant(b.normal(C, 4, 3, 3)), "", **SAME))
    ),
    "conv_bn_bn": Case(0, lambda b: b.bn(conv_bn(b))),
    "bn_alone": Case(1, lambda b: b.bn(b.input(1, C, 12, 11))),
    "conv_bn_two_consumers": Case(0, two_readers),
    "conv_dropout_bn": Case(0, then("Dropout")),
    "depthwise_bn": Case(0, lambda b: b.bn(conv(b, b.input(1, C, 12, 11), group=C))),
    "grouped_conv_bn": Case(0, lambda b: b.bn(conv(b, b.input(1, C, 12, 11), group=4))),
    "convtranspose_bn": Case(0, transposed),
    "convtranspose_bias_bn": Case(0, partial(transposed, bias=True)),
    "convtranspose_group4_bn": Case(0, partial(transposed, group=4)),
    "convtranspose_square_bn": Case(0, partial(transposed, out=C)),
    "conv1d_bn": Case(0, lambda b: b.bn(b.conv(b.input(1, 4, 32), C, 3, pads=[1, 1]))),
    "conv3d_bn": Case(0, lambda b: b.bn(b.conv(b.input(1, 3, 6, 5, 7), C, 3, pads=[1] * 6))),
    "conv_bn_epsilon": Case(0, partial(conv_bn, epsilon=1e-3)),
    "conv_bn_tiny_variance": Case(0, partial(conv_bn, variance=1e-10)),
    "conv_bn_zero_gamma": Case(0, partial(conv_bn, gamma=0.0)),
    "bn_params_shared_by_two_bn": Case(0, shared_parameters),
    "conv_output_is_graph_output": Case(1, two_outputs),
    "conv_two_bn_consumers": Case(1, two_batchnorms),
    "conv_output_captured_by_subgraph": Case(1, bodies.captured_value),
    "weight_captured_by_subgraph": Case(0, bodies.captured_weight),
    "weight_is_graph_output": Case(0, weight_is_output, finish=bodies.declare),
    "bn_dynamic_scale": Case(1, dynamic_scale),
    "weights_as_inputs_ir3": Case(0, conv_bn, 9, 3),
    "weight_is_overridable_input_ir8": Case(1, overridable_weight),
    "weight_constant_node": Case(0, partial(weight_via, op="Constant")),
    "weight_identity": Case(0, partial(weight_via, op="Identity")),
    "weight_transpose": Case(0, partial(weight_via, op="Transpose")),
    "weight_reshape": Case(0, partial(weight_via, op="Reshape")),
    "bn_params_constant_nodes": Case(0, constant_parameters),
    "external_data": Case(0, conv_bn),
    "fp16": Case(0, conv_bn, type_=TensorProto.FLOAT16),
    "bf16": Case(0, conv_bn, 22, 10, TensorProto.BFLOAT16),
    "float64": Case(0, conv_bn, type_=TensorProto.DOUBLE),
    "fp16_data_fp32_parameters": Case(0, partial(conv_bn, parameters=TensorProto.FLOAT), 15, 8, TensorProto.FLOAT16),
    "bn_in_if_branch": Case(0, bodies.both_in_branch),
    "conv_outside_bn_inside_if": Case(2, bodies.bn_in_branch),
    "bn_in_loop_body": Case(0, bodies.loop, finish=bodies.declare),
    "bn_in_function": Case(0, conv_bn, finish=bodies.function),
}
