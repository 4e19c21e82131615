"""What is left in a model: counted the same way whoever wrote it, and by code of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

LARGEST = 1 << 16
"""Constants beyond this many elements are weights, not scales."""


@dataclass(frozen=True)
class Count:
    """Nodes of one model."""

    bn: int
    scale_shift: int
    """Mul, Div, Add and Sub by a constant per channel, but no Add behind a MatMul: that is its bias."""

    def left_of(self, original: Count) -> int:
        """What counts as left: every BN, and every scale-shift that the original did not have."""
        return self.bn + max(0, self.scale_shift - original.scale_shift)


def count(model: ModelProto) -> Count:
    """Count the main graph, its subgraphs and the model's functions."""
    scales = sum(_scales(nodes, initializers) for nodes, initializers in _scopes(model))
    return Count(batchnorms(model), scales)


def batchnorms(model: ModelProto) -> int:
    """BatchNormalization nodes, subgraphs and functions included."""
    return sum(node.op_type == "BatchNormalization" for nodes, _ in _scopes(model) for node in nodes)


def _scopes(model: ModelProto) -> Iterator[tuple[list[NodeProto], list[TensorProto]]]:
    graphs: list[GraphProto] = [model.graph]
    bodies = [list(function.node) for function in model.functions]
    for nodes in bodies:
        graphs.extend(_subgraphs(nodes))
        yield nodes, []
    while graphs:
        graph = graphs.pop()
        graphs.extend(_subgraphs(graph.node))
        yield list(graph.node), list(graph.initializer)


def _subgraphs(nodes: Iterator[NodeProto] | list[NodeProto]) -> Iterator[GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield attribute.g
            yield from attribute.graphs


def _scales(nodes: list[NodeProto], initializers: list[TensorProto]) -> int:
    """Nodes of the four with one constant operand that is a vector, or computed from constants."""
    vector = {tensor.name: _is_vector(tuple(tensor.dims)) for tensor in initializers}
    producer = {name: node.op_type for node in nodes for name in node.output}
    found = 0
    for node in nodes:
        if node.op_type == "Constant":
            value = onnx.helper.get_node_attr_value(node, node.attribute[0].name)
            array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
            vector[node.output[0]] = _is_vector(array.shape)
        elif node.input and all(name in vector for name in node.input if name):
            vector |= dict.fromkeys(node.output, True)
        elif node.op_type in ("Mul", "Div", "Add", "Sub") and any(name in vector for name in node.input):
            constant, other = node.input if node.input[0] in vector else reversed(node.input)
            is_bias = node.op_type == "Add" and producer.get(other) == "MatMul"
            found += vector[constant] and not is_bias
    return found


def _is_vector(shape: tuple[int, ...]) -> bool:
    """One axis above one: per channel. A single number is not counted: activations are written with them."""
    return sum(size > 1 for size in shape) == 1 and max(shape) <= LARGEST
