"""Walking the nodes of a model file, those inside of nodes included; the names that are taken in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import AttributeProto

_PLAIN = frozenset(
    {AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.TENSOR}
    | {AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS, AttributeProto.TENSORS}
)
"""The types of most attributes: they hold no graphs."""


def bodies(node: onnx.NodeProto) -> list[tuple[tuple[int, int], onnx.GraphProto]]:
    """The graphs inside a node, each with its attribute's index and its position in a list of graphs or -1."""
    found: list[tuple[tuple[int, int], onnx.GraphProto]] = []
    for i, attribute in enumerate(node.attribute):
        kind = attribute.type
        if kind in _PLAIN:
            continue
        if kind == AttributeProto.GRAPH:
            found.append(((i, -1), attribute.g))
        found += [((i, k), graph) for k, graph in enumerate(attribute.graphs)]
    return found


def every_node(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes and those of their bodies."""
    stack = [iter(nodes)]
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
            continue
        yield node
        stack += [iter(body.node) for _, body in bodies(node)]


def inner_graphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The bodies of these nodes, and those inside of them."""
    for node in every_node(nodes):
        yield from (body for _, body in bodies(node))


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies in it."""
    yield graph
    yield from inner_graphs(graph.node)


def sharded(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node's device configurations name."""
    for entry in node.device_configurations:
        yield from (spec.tensor_name for spec in entry.sharding_spec)


def quantized(graph: onnx.GraphProto) -> Iterator[str]:
    """The tensors that quantization annotations name, and those that hold their parameters."""
    for entry in graph.quantization_annotation:
        yield entry.tensor_name
        yield from (parameter.value for parameter in entry.quant_parameter_tensor_names)


def read_in_training(model: onnx.ModelProto) -> Iterator[str]:
    """What training steps read: they share the names of the model's graph."""
    for info in model.training_info:
        yield from (name for node in every_node(info.algorithm.node) for name in node.input)
        yield from (value.name for graph in every_graph(info.algorithm) for value in graph.output)


def trained(model: onnx.ModelProto) -> Iterator[str]:
    """The initializers that training starts and updates."""
    for info in model.training_info:
        yield from (entry.key for entry in (*info.initialization_binding, *info.update_binding))


class Names:
    """The names of a model's tensors and nodes, so that a new one can be told from them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._taken = _names(model.graph)
        for info in model.training_info:
            self._taken |= _names(info.algorithm)
        self._last: dict[str, int] = {}

    def fresh(self, wanted: str) -> str:
        """`wanted`, numbered where it is taken; from now on it is."""
        name = wanted
        while name in self._taken:
            self._last[wanted] = self._last.get(wanted, 1) + 1
            name = f"{wanted}.{self._last[wanted]}"
        self._taken.add(name)
        return name


def _names(graph: onnx.GraphProto) -> set[str]:
    found, stack = set[str](), [graph]
    while stack:
        graph = stack.pop()
        for group in (graph.input, graph.output, graph.value_info, graph.initializer):
            found.update([item.name for item in group])
        found.update([sparse.values.name for sparse in graph.sparse_initializer])
        for node in graph.node:
            found.add(node.name)
            found.update(node.input)
            found.update(node.output)
            if node.attribute:
                stack += [body for _, body in bodies(node)]
    return found
