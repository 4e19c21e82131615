"""Operators that are written out as several nodes, and that runtimes compute as one again where they find them whole.

Taking a constant out of one saves less than the one operator is faster than its parts: measured on ONNX Runtime's CPU,
GELUs without their constants make FastViT take 1.10 times as long. The patterns are those that ONNX Runtime 1.32 was
seen to fuse.

Source: onnxruntime/core/optimizer/{gelu_fusion,layer_norm_fusion}.cc.
"""

from __future__ import annotations

import math

import numpy as np

from bnfold.graph import Graph, Node

GELU = "GELU"
NORMALIZATION = "layer normalization"

CLOSE = 2e-3
"""How far a constant may be from what it stands for, relatively: float16 is off by less."""


def composite_of(node: Node) -> str | None:
    """Which operator a node is part of: `GELU`, or `NORMALIZATION` for the scale and the shift at its end."""
    if node.op not in ("Add", "Div", "Erf", "Mul"):
        return None
    if "composite" not in node.memo:
        node.memo["composite"] = GELU if gelu_around(node) else NORMALIZATION if _ends_normalization(node) else None
    found = node.memo["composite"]
    assert found is None or isinstance(found, str)
    return found


def gelu_around(node: Node) -> tuple[Node, ...]:
    """The five nodes of ``0.5 * x * (1 + erf(x / sqrt(2)))`` that this one is one of; none where it is not."""
    memo = node.graph.memo
    if GELU not in memo:
        gelus = (_gelu(each) for each in reversed(node.graph.nodes) if each.op == "Erf")
        memo[GELU] = {each.index: nodes for nodes in gelus for each in nodes}
    found = memo[GELU]
    assert isinstance(found, dict)
    return tuple(found.get(node.index, ()))


def _gelu(erf: Node) -> tuple[Node, ...]:
    """The nodes of the GELU around an Erf; none where there is no GELU."""
    divided, added = _maker(erf, 0), _only_reader(erf)
    if divided is None or added is None or divided.op != "Div" or added.op != "Add":
        return ()
    product = _only_reader(added)
    if product is None or product.op != "Mul" or not _is_constant(divided, math.sqrt(2), 1) or not _has(added, 1.0):
        return ()
    x = divided.inputs[0]
    other = next((name for name in product.inputs if name != added.outputs[0]), "")
    half = _only_reader(product) if other == x else erf.graph.producers.get(other)
    if half is None or half.op != "Mul" or not _has(half, 0.5) or (other != x and x not in half.inputs):
        return ()
    return divided, erf, added, product, half


def _ends_normalization(node: Node) -> bool:
    """Whether it is the scale behind ``(x - mean) / sqrt(var + epsilon)``, or the shift behind that."""
    if node.op == "Add":
        scale = next((made for made in _makers(node) if made.op == "Mul" and _ends_normalization(made)), None)
        return scale is not None and _only_reader(scale) is node
    divided = next((made for made in _makers(node) if made.op == "Div"), None) if node.op == "Mul" else None
    if divided is None or _only_reader(divided) is not node:
        return False
    root = _maker(divided, 1)
    total = _maker(root, 0) if root is not None and root.op == "Sqrt" else None
    mean = next(iter(_makers(total)), None) if total is not None and total.op == "Add" else None
    return mean is not None and mean.op == "ReduceMean"


def _maker(node: Node, slot: int) -> Node | None:
    return node.graph.producers.get(node.input(slot))


def _makers(node: Node) -> list[Node]:
    """What makes its inputs, constants left out."""
    graph = node.graph
    return [graph.producers[name] for name in node.inputs if name in graph.producers and graph.constant(name) is None]


def _readers(node: Node) -> list[Node]:
    return [reader for name in node.outputs for reader, _ in node.graph.consumers.get(name, ())]


def _only_reader(node: Node) -> Node | None:
    """The node that alone reads the output."""
    graph: Graph = node.graph
    readers = _readers(node)
    free = node.outputs[0] not in graph.output_set | graph.captured
    return readers[0] if len(readers) == 1 and free else None


def _has(node: Node, value: float) -> bool:
    """Whether one of two operands is this number."""
    return any(_is_constant(node, value, slot) for slot in range(len(node.inputs)))


def _is_constant(node: Node, value: float, slot: int) -> bool:
    constant = node.constant(slot)
    if constant is None or not constant.is_float or math.prod(constant.shape) != 1:
        return False
    return bool(np.all(np.abs(constant.float64() - value) <= CLOSE * value))
