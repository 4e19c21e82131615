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


class Names:
    """The names of a model's tensors and nodes, so that a new one can be told from them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._taken = _names(model.graph)
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
