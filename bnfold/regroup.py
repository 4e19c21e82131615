"""The model with sums in another order, and nodes that changed places: what the merges ask for, put into a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from bnfold.graph import Graph, Model
from bnfold.witness import Regrouped, Sum


@dataclass
class Reordered:
    """The new model, and where its nodes were."""

    proto: onnx.ModelProto
    origin: dict[str, list[int]] = field(default_factory=dict)
    """By path of a graph that changed: of every node the index that it had, of a new one that of the whole sum."""
    new: dict[str, set[int]] = field(default_factory=dict)
    """By path: indices of nodes that the model did not have."""


def reordered(model: Model, wanted: Mapping[str, Sequence[Regrouped]]) -> Reordered:
    """The model after it. `model` is not changed.

    Args:
        model: as it is.
        wanted: by path of a graph, what to do there.
    """
    result = Reordered(onnx.ModelProto())
    result.proto.CopyFrom(model.proto)
    for graph in reversed(model.graphs):  # inner ones first: the trails count the nodes of the outer ones
        if wanted.get(graph.path):
            _reorder(graph, graph.within(result.proto), wanted[graph.path], result)
    return result


def _reorder(graph: Graph, proto: onnx.GraphProto, wanted: Sequence[Regrouped], result: Reordered) -> None:
    gone = {index for each in wanted for index in each.nodes}
    made: dict[int, list[Sum]] = {}
    for each in wanted:
        places = [each.nodes[-1]] * len(each.sums) if each.is_swap else _places(each.sums)
        for place, one in zip(places, each.sums, strict=True):
            made.setdefault(place, []).append(one)
    whole = {id(one): each.nodes[-1] for each in wanted for one in each.sums}
    origin, nodes = result.origin.setdefault(graph.path, []), []
    new = result.new.setdefault(graph.path, set())
    for index, node in enumerate(proto.node):
        if index not in gone:
            origin.append(index)
            nodes.append(node)
        for one in made.get(index, ()):
            if one.like < 0:
                new.add(len(nodes))
            origin.append(whole[id(one)] if one.like < 0 else one.like)
            nodes.append(_node(proto, one))
    stale = {graph.nodes[index].outputs[0] for index in gone} - {each.output for one in wanted for each in one.sums}
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.node[:]
    proto.node.extend(copies)
    for place in range(len(proto.value_info) - 1, -1, -1):
        if proto.value_info[place].name in stale:
            del proto.value_info[place]


def _places(sums: Sequence[Sum]) -> list[int]:
    """Where each stands: a new one in front of the next that is like one of the original."""
    found: list[int] = []
    for one in reversed(sums):
        found.append(one.like if one.like >= 0 else found[-1])
    return found[::-1]


def _node(proto: onnx.GraphProto, made: Sum) -> onnx.NodeProto:
    node = onnx.NodeProto(name=made.output)
    if made.like >= 0:
        node.CopyFrom(proto.node[made.like])
    node.op_type = made.op
    node.input[:] = made.inputs
    node.output[:] = [made.output]
    return node
