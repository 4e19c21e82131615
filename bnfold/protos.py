"""Walking the nodes of a model file, those inside of nodes included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import AttributeProto


def bodies(node: onnx.NodeProto) -> list[tuple[tuple[int, int], onnx.GraphProto]]:
    """The graphs inside a node, each with its attribute's index and its position in a list of graphs or -1."""
    found: list[tuple[tuple[int, int], onnx.GraphProto]] = []
    for i, attribute in enumerate(node.attribute):
        if attribute.type == AttributeProto.GRAPH:
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
