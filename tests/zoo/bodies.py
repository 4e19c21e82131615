"""Corner cases with subgraphs and functions, which the builder of the tests does not make."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from tests.builder import Builder

IMAGE = (1, 4, 12, 11)
SAME: dict[str, Any] = {"pads": [1, 1, 1, 1]}
C = 8


def branch(name: str, nodes: list[NodeProto]) -> GraphProto:
    """A body without inputs that gives the last node's output."""
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    )


def choose(b: Builder, then: list[NodeProto], otherwise: list[NodeProto]) -> str:
    """An If on a new input."""
    condition = b.input(1, name="condition", type_=TensorProto.BOOL)
    bodies = {"then_branch": branch("then", then), "else_branch": branch("else", otherwise)}
    b.nodes.append(helper.make_node("If", [condition], ["chosen"], name="if", **bodies))
    return "chosen"


def parameters(b: Builder) -> list[str]:
    values = (b.normal(C), b.normal(C), b.normal(C), b.rng.uniform(0.5, 2, C))
    return [b.constant(value, "parameter") for value in values]


def captured_value(b: Builder) -> tuple[str, ...]:
    """The convolution's output is also read inside an If."""
    y = b.conv(b.input(*IMAGE), C, 3, **SAME)
    bn = b.bn(y)
    made = choose(b, [helper.make_node("Relu", [y], ["r"])], [helper.make_node("Sigmoid", [y], ["s"])])
    return made, bn


def captured_weight(b: Builder) -> tuple[str, ...]:
    """The weights are also used by convolutions inside an If."""
    x, weight = b.input(*IMAGE), b.constant(b.normal(C, 4, 3, 3), "weight")
    bn = b.bn(b.node("Conv", x, weight, **SAME))
    then = [helper.make_node("Conv", [x, weight], ["c"], **SAME), helper.make_node("Relu", ["c"], ["r"])]
    other = [helper.make_node("Conv", [x, weight], ["d"], **SAME), helper.make_node("Sigmoid", ["d"], ["s"])]
    return choose(b, then, other), bn


def both_in_branch(b: Builder) -> tuple[str, ...]:
    """Conv and BN inside both branches."""
    x = b.input(*IMAGE)

    def body(tag: str) -> list[NodeProto]:
        weight = b.constant(b.normal(C, 4, 3, 3), "weight")
        return [
            helper.make_node("Conv", [x, weight], [f"{tag}.c"], **SAME),
            helper.make_node("BatchNormalization", [f"{tag}.c", *parameters(b)], [f"{tag}.y"]),
        ]

    return (choose(b, body("then"), body("else")),)


def bn_in_branch(b: Builder) -> tuple[str, ...]:
    """Conv outside, one BN in each branch."""
    y = b.conv(b.input(*IMAGE), C, 3, **SAME)
    then = [helper.make_node("BatchNormalization", [y, *parameters(b)], ["then.y"])]
    other = [helper.make_node("BatchNormalization", [y, *parameters(b)], ["else.y"])]
    return (choose(b, then, other),)


def loop(b: Builder) -> tuple[str, ...]:
    """Conv and BN inside a Loop, whose body holds the weights."""
    shape = [1, C, 12, 11]
    x = b.input(*shape)
    values = [b.normal(C, C, 3, 3), b.normal(C), b.normal(C), b.normal(C), b.rng.uniform(0.5, 2, C)]
    constants = [numpy_helper.from_array(v.astype(np.float32), f"body.{i}") for i, v in enumerate(values)]
    names = [tensor.name for tensor in constants]
    nodes = [
        helper.make_node("Conv", ["value", names[0]], ["body.c"], **SAME),
        helper.make_node("BatchNormalization", ["body.c", *names[1:]], ["body.y"]),
        helper.make_node("Tanh", ["body.y"], ["next"]),
        helper.make_node("Identity", ["go"], ["on"]),
    ]
    kinds: dict[str, tuple[int, list[int]]] = {
        "turn": (TensorProto.INT64, []),
        "go": (TensorProto.BOOL, []),
        "on": (TensorProto.BOOL, []),
    }
    kinds |= {"value": (TensorProto.FLOAT, shape), "next": (TensorProto.FLOAT, shape)}
    ends = {name: helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()}
    inputs, outputs = [ends[name] for name in ("turn", "go", "value")], [ends["on"], ends["next"]]
    body = helper.make_graph(nodes, "body", inputs, outputs, constants)
    trips, go = b.constant(np.array(3), "trips"), b.constant(np.array(True), "go.first")
    b.nodes.append(helper.make_node("Loop", [trips, go, x], ["last"], name="loop", body=body))
    return ("last",)


def declare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give outputs the shape that inference does not find: an initializer's own, or the image's."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for output in model.graph.output:
        shape = shapes.get(output.name, [1, C, 12, 11])
        output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, shape))
    return model


def function(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the model's Conv and BN nodes, twice, into calls of one function: folding needs inlining."""
    conv, bn = model.graph.node[0], model.graph.node[1]
    names = ["X", "W", "B", "scale", "bias", "mean", "variance"]
    inner = [
        helper.make_node("Conv", names[:3], ["c"], **SAME),
        helper.make_node("BatchNormalization", ["c", *names[3:]], ["Y"]),
    ]
    model.functions.append(helper.make_function("local", "ConvBN", names, ["Y"], inner, model.opset_import))
    model.opset_import.append(helper.make_opsetid("local", 1))
    calls = [helper.make_node("ConvBN", [*conv.input, *bn.input[1:]], ["first"], domain="local")]
    again = []
    for name in (*conv.input[1:], *bn.input[1:]):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor)
        array = np.concatenate([array, array], axis=1) if array.ndim == 4 else np.flip(array)
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{name}.again"))
        again.append(f"{name}.again")
    calls.append(helper.make_node("ConvBN", ["first", *again], [model.graph.output[0].name], domain="local"))
    del model.graph.node[:]
    model.graph.node.extend(calls)
    return model
